"""Multi-prize tickets for Keras: neural networks found by selecting random weights instead of training them."""

from keras_mpt import requirements  # noqa: F401  # isort: skip (first: it imports Keras)
from keras_mpt import (
    analysis,
    callbacks,
    convert,
    hub,
    initializers,
    layers,
    masks,
    models,
    ops,
    quantizers,
    tickets,
    zoo,
)
from keras_mpt.models import summary
from keras_mpt.tickets import TicketError, load_ticket, save_ticket

__version__ = "0.1.0"

__all__ = [
    "TicketError",
    "__version__",
    "analysis",
    "callbacks",
    "convert",
    "hub",
    "initializers",
    "layers",
    "load_ticket",
    "masks",
    "models",
    "ops",
    "quantizers",
    "save_ticket",
    "summary",
    "tickets",
    "zoo",
]
