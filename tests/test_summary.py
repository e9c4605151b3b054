"""The numbers of `summary` against counts from formulas, and the table that shows them."""

import json
import math

import keras
import numpy as np
import pytest

from keras_mpt import save_ticket, zoo
from keras_mpt.layers import MPTGRU, MPTConv1D, MPTConv2D, MPTConv2DTranspose, MPTDense, MPTDepthwiseConv2D
from keras_mpt.models.summaries import Summary, summary
from keras_mpt.quantizers import KernelQuantizer
from support.layer_contract import numpy

pytestmark = pytest.mark.slow_with("jax")

# Conv-4 on 32x32x3: name, kernel, positions at which the kernel is applied, from the architecture
CONV4 = [
    ("conv1", (3, 3, 3, 64), 32 * 32),
    ("conv2", (3, 3, 64, 64), 32 * 32),
    ("conv3", (3, 3, 64, 128), 16 * 16),
    ("conv4", (3, 3, 128, 128), 16 * 16),
    ("dense5", (8 * 8 * 128, 256), 1),
    ("dense6", (256, 256), 1),
    ("logits", (256, 10), 1),
]
SIZES = np.array([np.prod(kernel) for _, kernel, _ in CONV4])
POSITIONS = np.array([positions for *_, positions in CONV4])
NORM_CHANNELS = 64 + 64 + 128 + 128 + 256 + 256


def kept(sizes, sparsity):
    return sizes - np.floor(sparsity * sizes + 1e-9).astype(int)


def entropy(sizes, kept_weights):
    d = np.asarray(kept_weights) / sizes
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(-d * np.log2(d)) + np.nan_to_num(-(1 - d) * np.log2(1 - d))


def silent(model, **kwargs):
    return summary(model, print_fn=lambda text: None, **kwargs)


def model_of(*layers, shape=(16,)):
    return keras.Sequential([keras.Input(shape), *layers])


def by_name(result):
    return {row["name"]: row for row in result.rows}


class Unknown(keras.Model):
    """A subclassed model, two MPT layers and a plain one, and a weight of its own."""

    def __init__(self):
        super().__init__()
        self.first = MPTDense(8, seed=1, name="first")
        self.norm = keras.layers.BatchNormalization(name="norm")
        self.last = keras.layers.Dense(2, name="last")
        self.temperature = self.add_weight(shape=(), name="temperature")

    def call(self, inputs):
        return self.last(self.norm(self.first(self.first(inputs)))) * self.temperature


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.8])
def test_conv4_with_float_activations(sparsity):
    result = silent(zoo.conv4_mpt(sparsity=sparsity, seed=0))
    stays = kept(SIZES, sparsity)
    bits = SIZES * entropy(SIZES, stays) + 32
    rows = by_name(result)
    for i, (name, *_) in enumerate(CONV4):
        row = rows[name]
        assert (row["weights"], row["kept"], row["trainable"]) == (SIZES[i], stays[i], SIZES[i])
        assert row["file_bits"] == pytest.approx(bits[i])
        assert row["bits_per_weight"] == pytest.approx(bits[i] / SIZES[i])
        assert (row["input_bits"], row["macs_1bit"], row["macs_32bit"]) == (32, 0, SIZES[i] * POSITIONS[i])
    assert rows["conv3"]["output_shapes"] == [(None, 16, 16, 128)]
    assert rows["pool2"]["weights"] == 0 and rows["pool2"]["input_bits"] is None
    totals = result.totals
    assert totals["weights"] == totals["trainable"] == SIZES.sum() == 2_425_024
    assert totals["kept"] == stays.sum()
    assert totals["macs_1bit"] == 0
    assert totals["macs_32bit"] == (SIZES * POSITIONS).sum()
    assert totals["macs_kept"] == (stays * POSITIONS).sum()
    assert totals["file_bytes"] == math.ceil(bits.sum() / 8)
    assert totals["float32_bytes"] == 4 * SIZES.sum()
    assert totals["compression"] == pytest.approx(32 * SIZES.sum() / bits.sum(), rel=1e-3)


@pytest.mark.parametrize("affine", [False, True])
def test_conv4_with_binary_activations(affine):
    result = silent(zoo.conv4_mpt(sparsity=0.8, input_quantizer="approx_sign", batch_norm_affine=affine, seed=0))
    norms = (4 if affine else 2) * NORM_CHANNELS
    totals = result.totals
    assert totals["weights"] == SIZES.sum() + norms
    assert totals["kept"] == kept(SIZES, 0.8).sum() + norms
    assert totals["trainable"] == SIZES.sum() + norms - 2 * NORM_CHANNELS
    assert totals["macs_32bit"] == SIZES[0] * POSITIONS[0]  # the image is not binary
    assert totals["macs_1bit"] == (SIZES * POSITIONS)[1:].sum()
    bits = SIZES * entropy(SIZES, kept(SIZES, 0.8)) + 32
    assert totals["file_bits"] == pytest.approx(bits.sum() + 32 * norms)
    rows = by_name(result)
    assert [rows[name]["input_bits"] for name, *_ in CONV4] == [32, 1, 1, 1, 1, 1, 1]
    assert rows["norm1"]["bits_per_weight"] == 32 and rows["norm1"]["macs_32bit"] == 0


@pytest.mark.parametrize(
    "kernel_quantizer, initializer, bits_per_kept, scale",
    [
        ("scaled_sign", "signed_constant", 0, 32),
        ("scaled_sign", "he_normal", 1, 32),
        (None, "kaiming_normal", 0, 0),
        (None, "he_normal", 32, 0),
    ],
)
def test_bits_in_the_file(kernel_quantizer, initializer, bits_per_kept, scale):
    layer = MPTDense(
        8, sparsity=0.75, kernel_quantizer=kernel_quantizer, kernel_initializer=initializer, use_bias=True, seed=1
    )
    (row,) = silent(model_of(layer)).rows
    assert row["file_bits"] == pytest.approx(128 * entropy(128, 32) + bits_per_kept * 32 + scale + 32 * 8)
    assert (row["weights"], row["kept"], row["trainable"]) == (128 + 8, 32 + 8, 128 + 8)


@keras.saving.register_keras_serializable(package="test_summary")
class SignWithoutScale(KernelQuantizer):
    precision = 1

    def __call__(self, kernel, mask, kept):
        return keras.ops.sign(kernel) * mask


@pytest.mark.parametrize("kernel_quantizer", ["scaled_sign", None, SignWithoutScale()])
def test_bits_of_weights_that_are_no_longer_the_seeds(kernel_quantizer, tmp_path):
    """Of the kept ones: an eighth has another sign, another eighth another magnitude only."""
    layer = MPTDense(64, kernel_quantizer=kernel_quantizer, seed=1)
    model = model_of(layer)
    before = silent(model).totals["file_bits"]
    kernel = numpy(layer.frozen_kernel)
    kept = np.flatnonzero(numpy(layer.subnet_mask))
    kernel.flat[kept[: len(kept) // 8]] *= -1
    kernel.flat[kept[-len(kept) // 8 :]] *= 2
    kernel.flat[np.flatnonzero(numpy(layer.subnet_mask) == 0)] = 5
    layer.frozen_kernel.assign(kernel)
    signs = kernel_quantizer == "scaled_sign"
    changed = (1 if signs else 2) * len(kept) // 8
    more = len(kept) * entropy(len(kept), changed) + (0 if signs else 32 * changed)
    assert silent(model).totals["file_bits"] == pytest.approx(before + more)
    ticket = save_ticket(model, tmp_path / "changed.mpt", custom_objects=[SignWithoutScale])
    sizes = {name.rpartition("/")[2]: len(data) for name, data in ticket.blobs.items()}
    assert sizes.get("values", 0) == (0 if signs else 4 * changed)


def test_macs_are_1_bit_only_where_inputs_and_kernel_are():
    for settings, binary in [
        ({"input_quantizer": "ste_sign"}, True),
        ({"input_quantizer": "ste_tern"}, False),
        ({"input_quantizer": "ste_sign", "kernel_quantizer": None}, False),
    ]:
        (row,) = silent(model_of(MPTDense(8, seed=1, **settings))).rows
        assert (row["macs_1bit"], row["macs_32bit"]) == ((128, 0) if binary else (0, 128))
        assert row["macs_kept"] == 64
    (row,) = silent(model_of(MPTGRU(4, input_quantizer="ste_sign", seed=1), shape=(7, 3))).rows
    assert (row["macs_1bit"], row["macs_32bit"]) == (7 * 12 * 3, 7 * 12 * 4)  # states are no signs


@pytest.mark.parametrize(
    "layer, shape, positions, kernel",
    [
        (MPTConv1D(5, 3, strides=2, padding="same"), (9, 4), 5, 3 * 4 * 5),
        (MPTConv2D(6, 3, groups=2), (8, 8, 4), 6 * 6, 3 * 3 * 2 * 6),
        (MPTConv2D(6, 3, padding="same", pad_values=1.0, strides=2), (8, 8, 4), 4 * 4, 3 * 3 * 4 * 6),
        (MPTConv2D(6, 3, data_format="channels_first"), (4, 8, 9), 6 * 7, 3 * 3 * 4 * 6),
        (MPTDepthwiseConv2D(3, depth_multiplier=2), (8, 8, 4), 6 * 6, 3 * 3 * 4 * 2),
        (MPTConv2DTranspose(6, 2, strides=2), (8, 8, 4), 8 * 8, 2 * 2 * 4 * 6),
        (MPTDense(5), (7, 3, 4), 7 * 3, 4 * 5),
        (keras.layers.Conv3D(5, 2, use_bias=False), (3, 4, 5, 2), 2 * 3 * 4, 8 * 2 * 5),
        (keras.layers.SeparableConv2D(6, 3, use_bias=False), (8, 8, 4), 6 * 6, 3 * 3 * 4 + 4 * 6),
        (keras.layers.Conv1DTranspose(5, 4, strides=3, use_bias=False), (6, 2), 6, 4 * 2 * 5),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, keras.layers.Layer) else None,
)
def test_macs_of_each_kind_of_layer(layer, shape, positions, kernel):
    (row,) = silent(model_of(layer, shape=shape)).rows
    assert (row["weights"], row["macs_32bit"]) == (kernel, kernel * positions)


def test_plain_layers_count_everything_at_32_bits():
    (row,) = silent(model_of(keras.layers.Dense(4))).rows
    assert (row["weights"], row["kept"], row["trainable"]) == (68, 68, 68)
    assert (row["file_bits"], row["macs_32bit"], row["macs_kept"]) == (32 * 68, 64, 64)


def test_shared_layer_counts_its_weights_once_and_its_macs_at_every_call():
    inputs, others = keras.Input((10, 16)), keras.Input((3, 16))
    shared = MPTDense(8, sparsity=0.75, seed=1, name="shared")
    pooled = [keras.layers.GlobalAveragePooling1D()(shared(x)) for x in (inputs, others)]
    result = silent(keras.Model([inputs, others], keras.layers.Add()(pooled)))
    row = by_name(result)["shared"]
    assert (row["calls"], row["weights"], row["kept"]) == (2, 128, 32)
    assert (row["macs_32bit"], row["macs_kept"]) == (128 * 13, 32 * 13)
    assert set(row["output_shapes"]) == {(None, 3, 8), (None, 10, 8)}
    assert result.totals["weights"] == 128
    assert "shared x2 (MPTDense)" in str(result)
    assert any(shapes in str(result) for shapes in ("10x8, 3x8", "3x8, 10x8"))


def test_layers_outside_of_the_model_and_their_calls_are_not_counted():
    inputs = keras.Input((16,))
    layer = MPTDense(16, seed=1)
    model = keras.Model(inputs, layer(inputs))
    layer(layer(inputs))
    (row,) = silent(model).rows
    assert (row["calls"], row["macs_32bit"]) == (1, 256)


def test_nested_models_are_descended_at_every_call():
    block = keras.Sequential([keras.Input((None, None, 4)), MPTConv2D(4, 3, padding="same", seed=1)], name="block")
    inputs = keras.Input((8, 8, 4))
    x = keras.layers.MaxPooling2D()(block(inputs))
    inner_inputs = keras.Input((4, 4, 4))
    inner = keras.Model(inner_inputs, block(inner_inputs) + 1.0, name="inner")
    result = silent(keras.Model(inputs, inner(inner(x))))
    rows = by_name(result)
    conv = rows[block.layers[0].name]
    assert [(row["name"], row["depth"]) for row in result.rows if row["calls"] > 1] == [
        ("block", 1),
        (conv["name"], 2),
        ("inner", 1),
    ]
    assert conv["calls"] == rows["block"]["calls"] == 3 and rows["inner"]["calls"] == 2
    assert conv["output_shapes"] == [(None, 8, 8, 4), (None, 4, 4, 4)]  # where the block was called, not where built
    assert conv["macs_32bit"] == 144 * (64 + 2 * 16)
    assert result.totals["weights"] == conv["weights"] == 144
    assert f"\n  {conv['name']} x3 (MPTConv2D)" in str(result)


def test_models_with_several_named_inputs():
    inputs = {"b": keras.Input((16,), name="b"), "a": keras.Input((4,), name="a")}
    nested = keras.Model(inputs, [MPTDense(3, seed=1, name="of_b")(inputs["b"]), inputs["a"]], name="nested")
    outer = {name: keras.Input(x.shape[1:], name=name) for name, x in inputs.items()}
    result = silent(keras.Model(outer, nested(outer)))
    assert by_name(result)["of_b"]["macs_32bit"] == 48
    assert len(nested.get_layer("of_b")._inbound_nodes) == 1  # the graph is as it was
    assert by_name(result)["nested"]["output_shapes"] == [(None, 3), (None, 4)]


def test_unknown_sizes_and_arithmetic_are_question_marks():
    unsized = model_of(MPTConv2D(4, 3, seed=1), shape=(None, None, 3))
    assert silent(unsized).totals["macs_32bit"] is None
    assert "?x?x4" in str(silent(unsized))
    recurrent = silent(model_of(keras.layers.ConvLSTM1D(4, 3), shape=(2, 5, 16))).totals
    assert (recurrent["weights"], recurrent["macs_32bit"]) == (4 * 4 * (3 * 16 + 3 * 4 + 1), None)


def test_subclassed_model():
    model = Unknown()
    model(np.zeros((2, 8), "float32"))
    result = silent(model)
    assert [row["name"] for row in result.rows] == [model.name, "first", "norm", "last"]
    rows = by_name(result)
    assert rows[model.name]["weights"] == 1
    assert (rows["first"]["weights"], rows["first"]["kept"], rows["first"]["output_shapes"]) == (64, 32, [])
    assert rows["first"]["calls"] is rows["first"]["macs_32bit"] is None
    assert rows["norm"]["macs_32bit"] == 0
    assert result.totals["weights"] == 1 + 64 + 32 + 18
    assert result.totals["trainable"] == 1 + 64 + 16 + 18
    assert result.totals["macs_32bit"] is result.totals["macs_kept"] is None
    first = next(line for line in str(result).splitlines() if "first" in line)
    assert first.split() == ["first", "(MPTDense)", "32", "-", "64", "32", "1.50", "?"]


def test_model_of_models_where_one_is_subclassed():
    model = Unknown()
    inputs = keras.Input((8,))
    result = silent(keras.Model(inputs, MPTDense(4, seed=1, name="after")(model(inputs))))
    rows = by_name(result)
    assert rows[model.name]["calls"] == 1 and rows[model.name]["output_shapes"] == [(None, 2)]
    assert rows["first"]["macs_32bit"] is None and rows["first"]["depth"] == 2
    assert rows["after"]["macs_32bit"] == 8
    assert result.totals["weights"] == 1 + 64 + 32 + 18 + 8


def test_frozen_layers_and_states_are_not_trainable():
    model = model_of(MPTDense(8, seed=1), keras.layers.Dropout(0.5, seed=1), keras.layers.BatchNormalization())
    model.layers[0].trainable = False
    totals = silent(model).totals
    assert (totals["weights"], totals["trainable"]) == (128 + 32, 16)


def test_model_without_weights():
    result = silent(model_of(keras.layers.ReLU()))
    assert result.totals["weights"] == 0 and result.totals["compression"] is None
    assert "Weights    0, of which 0" in str(result)


@pytest.mark.parametrize("make", [Unknown, lambda: keras.Sequential([MPTDense(4)])], ids=["subclassed", "sequential"])
def test_unbuilt_model_is_refused(make):
    with pytest.raises(ValueError, match=r"`model` must be built.*Received: <.*built=False"):
        silent(make())


@pytest.mark.filterwarnings("ignore:`build..` was called on layer")
def test_unbuilt_mpt_layer_is_refused():
    class OneUnused(Unknown):
        def __init__(self):
            super().__init__()
            self.unused = MPTDense(4, name="unused")

    model = OneUnused()
    model(np.zeros((2, 8), "float32"))
    with pytest.raises(ValueError, match=r"Received: <MPTDense name=unused, built=False>"):
        silent(model)


def test_table_of_conv4():
    texts = []
    result = summary(zoo.conv4_mpt(sparsity=0.8, input_quantizer="approx_sign", seed=0), print_fn=texts.append)
    assert texts == [str(result)]
    lines = texts[0].splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == 'Model "conv4_mpt"'
    table = {line.split()[0]: line.split() for line in lines}
    assert table["conv2"] == ["conv2", "(MPTConv2D)", "1", "32x32x64", "36.9k", "7,373", "0.72", "37.7M", "-"]
    assert table["norm1"] == ["norm1", "(BatchNorm)", "-", "32x32x64", "128", "128", "32.00", "-", "-"]
    assert table["Total"] == ["Total", "2.43M", "487k", "0.75", "96.5M", "1.77M"]
    assert "about 226 KB (as float32: 9.71 MB, 42.9 times as much)" in texts[0]
    assert "1-bit: 96.5M, 32-bit: 1.77M; of these with kept weights: 19.7M" in texts[0]


def test_columns_of_macs_are_those_that_occur():
    model = zoo.conv2_mpt(width=0.25, seed=0)
    assert "32-bit" in str(silent(model)).splitlines()[2]
    assert "1-bit" not in str(silent(model)).splitlines()[2]
    assert "MACs" not in str(silent(model, include_macs=False))


def test_long_names_fit_into_80_columns():
    name = "a_layer_with_a_name_that_is_much_too_long_for_a_terminal"
    layers = [MPTConv2D(100, 1, input_quantizer="ste_sign", seed=1, name=name), keras.layers.Conv2D(10, 1)]
    model = keras.Sequential([keras.Input((1024, 1024, 100)), *layers], name="m" * 100)
    outer = keras.Sequential([keras.Input((1024, 1024, 100)), model])
    lines = str(silent(outer)).splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("  a_layer_with_a") and ".." in line for line in lines)
    assert silent(outer).rows[1]["name"] == name


def test_prints_by_default(capsys):
    result = summary(model_of(MPTDense(4, seed=1)))
    assert capsys.readouterr().out == f"{result}\n"


def test_result_is_plain_data_and_html():
    result = silent(model_of(MPTDense(4, seed=1, name="a&b"), keras.layers.BatchNormalization(name="norm")))
    restored = Summary(**json.loads(json.dumps(vars(result))))
    assert str(restored) == str(result)
    page = result._repr_html_()
    assert page.count("<tr>") == 2 + len(result.rows)
    assert ">a&amp;b (MPTDense)</td>" in page and ">norm (BatchNormalization)</td>" in page
    assert "Trainable: 72" in page
    assert repr(result) == f"<Summary of {result.name!r}: 2 layers, 80 weights>"
