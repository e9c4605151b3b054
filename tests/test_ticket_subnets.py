"""Tickets of layers with several kernels, each with its own seed stream, mask and alpha."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_mpt import hub, layers, masks
from keras_mpt.models.tables import short
from keras_mpt.quantizers import KernelQuantizer
from keras_mpt.tickets import Ticket, load_ticket, restore, save_ticket
from support.ticket_files import outputs

X = np.random.default_rng(0).integers(0, 9, (3, 5))


def network():
    tokens = keras.Input((5,), dtype="int32")
    x = layers.MPTEmbedding(9, 6, seed=1)(tokens)
    x = x + layers.MPTMultiHeadAttention(2, 3, seed=2, dropout=0.1)(x, x)
    x = layers.MPTSeparableConv1D(6, 3, seed=3, padding="same", mask=masks.PartiallyFrozen(0.6, 0.3, 0.1))(x)
    x = layers.MPTLSTM(7, seed=4, sparsity=0.7)(x)
    return keras.Model(tokens, layers.MPTDense(2, seed=5)(x))


@pytest.mark.parametrize("scores", [False, True])
def test_layers_with_several_kernels(scores, tmp_path):
    model, file = network(), tmp_path / "a.mpt"
    for variable in model.trainable_variables:
        variable.assign(np.random.default_rng(len(variable.shape)).normal(size=variable.shape))
    for subnet in (s for layer in model.layers if isinstance(layer, layers.MPTLayer) for s in layer.subnets):
        subnet.frozen_kernel.assign(2 * subnet.frozen_kernel)  # scales that the seed's weights do not have
    ticket = save_ticket(model, file, scores=scores)
    assert file.read_bytes()[8] == 2
    several = {path: entry for path, entry in ticket.layers.items() if entry.get("subnets")}
    assert [part["name"] for entry in several.values() for part in entry["subnets"]] == [
        "pointwise_kernel",
        "recurrent_kernel",
    ]
    parts = next(iter(several.values()))
    assert [part["kernel"]["mask"]["stream"] for part in (parts, *parts["subnets"])] == [5, 13]
    wanted = outputs(model, X)[0]
    assert np.ptp(wanted) > 1e-3
    for trainable in (False, True):
        loaded = load_ticket(file, trainable=trainable)
        np.testing.assert_allclose(outputs(loaded, X)[0], wanted, rtol=1e-5 if trainable else 1e-6, atol=1e-7)
    other = keras.models.clone_model(model)  # of the same names
    restore(other, Ticket.read(file))
    copied = keras.models.clone_model(other)  # of configs, as in a file of Keras: frozen, with scales of the weights
    assert not copied.trainable_variables
    copied.set_weights(other.get_weights())
    np.testing.assert_allclose(outputs(copied, X)[0], wanted, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(outputs(other, X)[0], wanted, rtol=1e-6, atol=1e-7)
    loaded = load_ticket(file)  # whose kernels have scales of their own
    save_ticket(loaded, tmp_path / "again.mpt")
    np.testing.assert_array_equal(outputs(load_ticket(tmp_path / "again.mpt"), X)[0], outputs(loaded, X)[0])


def test_the_table_counts_all_kernels(tmp_path):
    model = keras.Sequential([keras.Input((5, 6)), layers.MPTSeparableConv1D(7, 3, use_bias=True, seed=3)])
    found = model.layers[0].subnets
    ticket = save_ticket(model, tmp_path / "a.mpt", scores=True)
    weights, kept = (sum(map(np.prod, (s.shape for s in found))), sum(int(s.kept) for s in found))
    other = 7  # biases
    sizes = {name: len(data) for name, data in ticket.blobs.items()}
    coded, scores = (sum(size for name, size in sizes.items() if name.endswith(e)) for e in ("/mask", "/scores"))
    assert scores == 4 * weights
    total = next(line.split() for line in str(ticket).splitlines() if line.startswith("Total"))
    assert total[1:4] == [f"{weights + other:,}", f"{kept + other:,}", f"{coded:,}"]
    assert total[5] == short(sum(sizes.values()) - coded)
    assert f"| weights | {weights:,}, of which {kept:,} (" in hub.card(ticket, "me/a")


@pytest.mark.slow
def test_wrappers_that_copy_their_layers(tmp_path):
    inputs = x = keras.Input((2, 4))
    for _ in range(3):
        x = keras.layers.Bidirectional(keras.layers.SimpleRNN(4, return_sequences=True, use_bias=False))(x)
    rule = masks.Restricted(0.5)  # with the largest state of all rules
    x = keras.layers.Bidirectional(layers.MPTSimpleRNN(4, mask=rule, seed=1))(x)
    model = keras.Model(inputs, x)
    save_ticket(model, tmp_path / "a.mpt")  # which loads it, and compares
    data = np.random.default_rng(0).normal(size=(2, 2, 4)).astype("float32")
    np.testing.assert_allclose(*outputs(load_ticket(tmp_path / "a.mpt"), data), *outputs(model, data), rtol=1e-5)


@keras.saving.register_keras_serializable(package="test_ticket_subnets")
class LargestSign(KernelQuantizer):
    """The largest kept magnitude, times the signs (`power` = 1)."""

    precision = scale_count = 1

    def __init__(self, scale=None, power=1):
        self.scale, self.power = scale, power

    def scales(self, kernel, mask, kept):
        return (ops.max(ops.abs(kernel * mask)) if self.scale is None else ops.convert_to_tensor(self.scale),)

    def frozen(self, scales):
        return LargestSign(*(scales or ()), power=self.power)

    def __call__(self, kernel, mask, kept):
        return self.scales(kernel, mask, kept)[0] ** self.power * ops.sign(kernel * mask)


def test_a_quantizer_of_ones_own_with_a_scale(tmp_path):
    file, x = tmp_path / "a.mpt", X.astype("float32")
    dense = layers.MPTDense(4, kernel_quantizer=LargestSign(), kernel_initializer="kaiming_normal", seed=1)
    model = keras.Sequential([keras.Input((5,)), dense])
    entry = save_ticket(model, file, custom_objects=[LargestSign]).layers[dense.name]["kernel"]
    kept = np.abs(np.array(dense.frozen_kernel))[np.array(dense.subnet_mask) != 0]
    assert entry["scale"] == kept.max() and entry["values"] is None
    for trainable in (False, True):
        loaded = load_ticket(file, trainable=trainable, custom_objects=[LargestSign])
        np.testing.assert_allclose(outputs(loaded, x)[0], outputs(model, x)[0], rtol=1e-5)
        assert (loaded.layers[-1].kernel_quantizer.scale is None) == trainable
    dense.kernel_quantizer = LargestSign(power=2)
    with pytest.raises(ValueError, match="must use scale \\* sign"):
        save_ticket(model, file, custom_objects=[LargestSign])
