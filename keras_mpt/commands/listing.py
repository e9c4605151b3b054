"""`keras-mpt list`: list the published tickets."""

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
        "--min_accuracy", type=float, metavar="FRACTION", help="only tickets with at least this accuracy, such as 0.75"
    )
    parser.set_defaults(run=run)


def run(options):
    filters = {name: getattr(options, name) for name in ("activations", "max_bytes", "min_accuracy")}
    presets = zoo.list_presets(options.architecture, **filters)
    if not presets:
        print("No published ticket matches. `keras-mpt list` lists all of them.")
        return
    print(type(presets)(sorted(presets, key=lambda preset: -preset.accuracy)))
