"""Tickets of layers with several kernels, each with its own seed stream, mask and alpha."""

import keras
import numpy as np
import pytest

from keras_mpt import layers
from keras_mpt.tickets import Ticket, load_ticket, restore, save_ticket
from support.ticket_files import outputs

X = np.random.default_rng(0).integers(0, 9, (3, 5))


def network():
    tokens = keras.Input((5,), dtype="int32")
    x = layers.MPTEmbedding(9, 6, seed=1)(tokens)
    x = x + layers.MPTMultiHeadAttention(2, 3, seed=2, dropout=0.1)(x, x)
    x = layers.MPTSeparableConv1D(6, 3, seed=3, padding="same")(x)
    x = layers.MPTLSTM(7, seed=4, sparsity=0.7)(x)
    return keras.Model(tokens, layers.MPTDense(2, seed=5)(x))


@pytest.mark.parametrize("scores", [False, True])
def test_layers_with_several_kernels(scores, tmp_path):
    model, file = network(), tmp_path / "a.mpt"
    for variable in model.trainable_variables:
        variable.assign(np.random.default_rng(len(variable.shape)).normal(size=variable.shape))
    ticket = save_ticket(model, file, scores=scores)
    assert file.read_bytes()[8] == 2
    several = {path: entry for path, entry in ticket.layers.items() if entry.get("subnets")}
    assert [part["name"] for entry in several.values() for part in entry["subnets"]] == [
        "pointwise_kernel",
        "recurrent_kernel",
    ]
    wanted = outputs(model, X)[0]
    assert np.ptp(wanted) > 1e-3
    for trainable in (False, True):
        loaded = load_ticket(file, trainable=trainable)
        np.testing.assert_allclose(outputs(loaded, X)[0], wanted, rtol=1e-5 if trainable else 1e-6, atol=1e-7)
    other = keras.models.clone_model(model)  # of the same names
    restore(other, Ticket.read(file))
    np.testing.assert_allclose(outputs(other, X)[0], wanted, rtol=1e-6, atol=1e-7)
