"""The subcommands of `keras-mpt`, one file each: `add(commands)` describes one, `run(options)` does it."""
