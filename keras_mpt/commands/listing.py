"""`keras-mpt list`: the published tickets."""

from keras_mpt import zoo


def add(commands):
    parser = commands.add_parser(
        "list",
        help="list the published tickets",
        description="List the published tickets, the most accurate first.",
    )
    parser.add_argument("--architecture", metavar="NAME", help="only tickets of this network, such as resnet18_mpt")
    parser.add_argument("--activations", choices=("binary", "float"), help="only tickets with these activations")
    parser.add_argument("--max_bytes", type=int, metavar="N", help="only files of at most N bytes")
    parser.add_argument(
        "--min_accuracy", type=float, metavar="FRACTION", help="only tickets at least that accurate, such as 0.75"
    )
    parser.set_defaults(run=run)


def run(options):
    rows = [("preset", "activations", "kept", "accuracy", "bytes", "data")]
    presets = zoo.list_presets(options.architecture)
    for preset in sorted(presets, key=lambda preset: -preset.accuracy):
        binary = preset.arguments.get("input_quantizer") is not None
        size = preset.path.stat().st_size
        if options.activations not in (None, "binary" if binary else "float"):
            continue
        if options.max_bytes is not None and size > options.max_bytes:
            continue
        if options.min_accuracy is not None and preset.accuracy < options.min_accuracy:
            continue
        sparsity = preset.arguments.get("sparsity")
        kept = f"{1 - sparsity:.0%}" if isinstance(sparsity, (int, float)) else "-"
        activations = "binary" if binary else "float"
        rows.append((preset.name, activations, kept, f"{preset.accuracy:.2%}", f"{size:,}", preset.data))
    if len(rows) == 1:
        print("No published ticket is like that: see `keras-mpt list` for all of them.")
        return
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        name, activations, *numbers, data = row
        cells = [name.ljust(widths[0]), activations.ljust(widths[1])]
        cells += [cell.rjust(width) for cell, width in zip(numbers, widths[2:-1], strict=True)]
        print("  ".join([*cells, data]).rstrip())
