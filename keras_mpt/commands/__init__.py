"""The subcommands of `keras-mpt`, a file each: `add(commands)` adds the parser, `run(options)` runs it."""
