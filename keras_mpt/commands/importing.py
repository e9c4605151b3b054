"""`keras-mpt import`: convert a PyTorch checkpoint to a ticket."""

import pathlib

from keras_mpt.commands import sources
from keras_mpt.convert.pytorch.layouts import LAYOUTS
from keras_mpt.files import check_ending, check_folder, sha256_of
from keras_mpt.tickets import save_ticket
from keras_mpt.tickets.published import ENDING


def add(commands):
    parser = commands.add_parser(
        "import",
        help="convert a PyTorch checkpoint to a ticket",
        description="Convert a checkpoint of the PyTorch code of Biprop, Edge-Popup or Lottery Jackpots to a ticket.",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="the checkpoint, such as model_best.pth")
    parser.add_argument("out", metavar="OUT", help="path of the new ticket; .mpt is the usual suffix")
    parser.add_argument(
        "--model", metavar="NAME", help="network of the zoo, such as resnet18_mpt; default: the one in the file"
    )
    parser.add_argument(
        "--sparsity", type=float, metavar="FRACTION", help="fraction removed; default: the one in the file"
    )
    parser.add_argument(
        "--layout", choices=["auto", *LAYOUTS], default="auto", help="code that saved it (default: auto, by its keys)"
    )
    parser.add_argument("--global_threshold", action="store_true", help="one threshold for the scores of all layers")
    parser.add_argument(
        "--input_quantizer", metavar="NAME", help="approx_sign for binary activations; default: as in the file"
    )
    parser.add_argument(
        "--input_shape",
        type=int,
        nargs=3,
        metavar=("HEIGHT", "WIDTH", "CHANNELS"),
        help="shape of an image; default: that of the network in the zoo",
    )
    parser.add_argument("--scores", action="store_true", help="also store scores and whole kernels, in a larger file")
    parser.set_defaults(run=run)


def run(options):
    from keras_mpt import convert, masks

    sources.check_out(options.out, options.checkpoint)
    check_folder(options.out)
    check_ending(options.out, ENDING)
    sparsity, mask = options.sparsity, None
    if options.global_threshold:
        if sparsity is None:
            raise ValueError("--global_threshold needs --sparsity.")
        sparsity, mask = None, masks.GlobalTopK(sparsity)
    given = {"input_quantizer": options.input_quantizer, "input_shape": options.input_shape}
    arguments = {name: value for name, value in given.items() if value is not None}
    model = convert.from_pytorch(options.checkpoint, options.model, sparsity, options.layout, mask=mask, **arguments)
    source = {"file": pathlib.Path(options.checkpoint).name, "sha256": sha256_of(options.checkpoint)}
    print(save_ticket(model, options.out, scores=options.scores, provenance={"imported from PyTorch": source}))
