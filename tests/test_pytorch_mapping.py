"""What is no network of the zoo, what is no checkpoint of it, and tickets of ours in PyTorch."""

import os

import keras
import numpy as np
import pytest

from keras_mpt import masks, quantizers, zoo
from keras_mpt.__main__ import main
from keras_mpt.convert import CheckpointError, from_pytorch, to_pytorch_state_dict
from keras_mpt.layers import MPTConv2D, MPTConv2DTranspose, MPTDense, MPTDepthwiseConv2D
from keras_mpt.models import mpt_layers
from support.layer_contract import numpy

torch = pytest.importorskip("torch")
from torch.nn import functional  # noqa: E402

from support import torch_networks as nets  # noqa: E402, which needs torch

pytestmark = pytest.mark.slow_with("jax")
SHAPE = (8, 8, 3)
X = np.random.default_rng(1).normal(size=(16, *SHAPE)).astype(np.float32)
MAPPING = {
    "conv": "first",
    "groups": "body.0",
    "inside/depthwise": "body.1",
    "flat_norm": "norm",
    "dense": "head.0",
    "float": "head.1",
}


def own_model(**settings):
    """Groups, depthwise filters, a nested model, batch normalization of flattened maps, a layer that is no ticket."""
    settings = {"kernel_quantizer": None, "seed": 1, **settings}
    image = keras.Input(SHAPE)
    x = MPTConv2D(4, 3, strides=2, padding=1, use_bias=True, name="conv", **settings)(image)
    x = MPTConv2D(6, 3, padding="same", groups=2, activation="relu", name="groups", **settings)(x)
    depthwise = MPTDepthwiseConv2D(3, depth_multiplier=2, padding="valid", name="depthwise", **settings)
    x = keras.layers.Flatten()(keras.Sequential([depthwise], name="inside")(x))
    x = keras.layers.BatchNormalization(epsilon=1e-5, name="flat_norm")(x)
    x = MPTDense(9, activation="relu", name="dense", **settings)(keras.layers.Dropout(0.5)(x))
    return keras.Model(image, keras.layers.Dense(5, name="float")(x))


def own_state(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"first": (4, 3, 3, 3), "body.0": (6, 2, 3, 3), "body.1": (12, 1, 3, 3), "head.0": (9, 48)}
    state = {f"{name}.weight": rng.normal(0, 0.5, shape) for name, shape in shapes.items()}
    state |= {f"{name}.scores": rng.normal(size=shape) for name, shape in shapes.items()}
    state |= {
        "first.bias": rng.normal(size=4),
        "head.1.weight": rng.normal(size=(5, 9)),
        "head.1.bias": rng.normal(size=5),
    }
    state |= {f"norm.{name}": rng.uniform(0.5, 2, 48) for name in ("weight", "bias", "running_mean", "running_var")}
    return {key: torch.from_numpy(np.asarray(value, np.float32)) for key, value in state.items()}


def own_forward(state, x):
    def kernel(name):
        scores = state[f"{name}.scores"].abs()
        return state[f"{name}.weight"] * nets._top(scores, int(0.5 * scores.numel()))

    x = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
    x = functional.conv2d(x, kernel("first"), state["first.bias"], stride=2, padding=1)
    x = torch.relu(functional.conv2d(x, kernel("body.0"), padding=1, groups=2))
    x = functional.conv2d(x, kernel("body.1"), groups=6).flatten(1)
    norm = [state[f"norm.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
    x = torch.relu(functional.batch_norm(x, *norm) @ kernel("head.0").T)
    return functional.linear(x, state["head.1.weight"], state["head.1.bias"]).numpy()


def test_explicit_mapping():
    state, settings = own_state(), {"layout": "hidden_networks", "mapping": MAPPING}
    model = from_pytorch(state, own_model(), 0.5, **settings)
    expected = own_forward(state, X)
    assert np.abs(numpy(model(X)) - expected).max() <= 1e-4 * np.abs(expected).max()
    back = to_pytorch_state_dict(model, mapping=MAPPING)
    assert set(back) - set(state) == {"norm.num_batches_tracked"}
    for key, value in state.items():
        np.testing.assert_array_equal(back[key].numpy().reshape(value.shape), value.numpy(), err_msg=key)

    for missing in ({key: value for key, value in MAPPING.items() if key != "dense"}, MAPPING | {"other": "x"}):
        with pytest.raises(ValueError, match="`mapping` must have the layers with weights.*(dense|other)"):
            from_pytorch(state, own_model(), 0.5, layout="hidden_networks", mapping=missing)
    with pytest.raises(ValueError, match=r"another module for each layer. Received twice: \['head.0'\]"):
        from_pytorch(state, own_model(), 0.5, layout="hidden_networks", mapping=MAPPING | {"float": "head.0"})
    with pytest.raises(ValueError, match="`mapping` must have the name of each layer in PyTorch"):
        from_pytorch(state, own_model(), 0.5, layout="hidden_networks")
    with pytest.raises(TypeError, match="width"):
        from_pytorch(state, own_model(), 0.5, width=2, **settings)
    with pytest.raises(ValueError, match="kernel quantizer Identity. Received: layer 'conv' with ScaledSign"):
        from_pytorch(state, own_model(kernel_quantizer="scaled_sign"), 0.5, **settings)
    with pytest.raises(ValueError, match="epsilon of PyTorch's batch normalization, 0.001"):
        from_pytorch(state, own_model(), 0.5, epsilon=1e-3, **settings)


def sequential(*layers):
    return keras.Sequential([keras.Input(SHAPE), *layers])


@pytest.mark.parametrize(
    "model, message",
    [
        (sequential(MPTConv2DTranspose(2, 3, name="a", kernel_quantizer=None)), "of type MPTConv2DTranspose"),
        (sequential(keras.layers.Conv2D(2, 3, name="a")), "must have layers of keras_mpt"),
        (keras.layers.Dense(2), "`model` must be a built functional"),
    ],
)
def test_models_that_cannot_be_filled(model, message):
    state = {"b.weight": np.zeros((2, 3, 3, 3), np.float32), "b.scores": np.ones((2, 3, 3, 3), np.float32)}
    with pytest.raises(ValueError, match=message):
        from_pytorch(state, model, 0.5, "hidden_networks", mapping={"a": "b"})


def test_order_of_inputs_that_cannot_be_told():
    image = keras.Input(SHAPE)
    both = keras.layers.Concatenate()([keras.layers.Flatten()(image), keras.layers.GlobalMaxPooling2D()(image)])
    model = keras.Model(image, MPTDense(2, kernel_quantizer=None, name="a")(both))
    state = {f"b.{name}": np.ones((2, 195), np.float32) for name in ("weight", "scores")}
    with pytest.raises(CheckpointError, match="'b.weight' goes to layer 'a', of which the order .* cannot be told"):
        from_pytorch(state, model, 0.5, "hidden_networks", mapping={"a": "b"})


def with_head(form):
    """A model in which a dense layer gets the flattened maps of a convolution, and the paths of both."""
    image, settings, layers = keras.Input(SHAPE), {"kernel_quantizer": None, "sparsity": 0.0, "seed": 1}, keras.layers
    conv, dense = MPTConv2D(4, 3, strides=2, name="conv", **settings), MPTDense(5, name="dense", **settings)
    if form == "nested head":
        head = keras.Sequential([layers.Dropout(0.1), dense], name="inside")
        return keras.Model(image, head(layers.Flatten()(conv(image)))), "conv", "inside/dense"
    if form == "nested maps":
        maps = keras.Sequential([keras.Input(SHAPE), conv, layers.Flatten()], name="inside")
        return keras.Sequential([maps, dense]), "inside/conv", "dense"
    move = {
        "permuted": layers.Permute((3, 1, 2)),
        "transposed": lambda x: keras.ops.transpose(x, (0, 3, 1, 2)),
        "turned": layers.Permute((2, 1, 3), name="turned"),
        "channels_first": layers.Identity(),
    }[form]
    flatten = layers.Flatten("channels_first" if form == "channels_first" else "channels_last", name="channels_first")
    return keras.Model(image, dense(flatten(layers.Dropout(0.1)(move(conv(image)))))), "conv", "dense"


@pytest.mark.parametrize("form", ["nested head", "nested maps", "permuted", "transposed", "turned", "channels_first"])
def test_order_of_flattened_maps(form):
    rng = np.random.default_rng(0)
    shapes = {"a": (4, 3, 3, 3), "b": (5, 36)}
    state = {f"{name}.weight": rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    state |= {f"{name}.scores": rng.uniform(1, 2, shape).astype(np.float32) for name, shape in shapes.items()}
    model, conv, dense = with_head(form)
    how = {"layout": "hidden_networks", "mapping": {conv: "a", dense: "b"}}
    if form in ("turned", "channels_first"):
        with pytest.raises(CheckpointError, match=f"order .* cannot be told: between .* there is '{form}'"):
            from_pytorch(state, model, 0.0, **how)
        return
    x, a, b = map(torch.from_numpy, (X.transpose(0, 3, 1, 2).copy(), state["a.weight"], state["b.weight"]))
    expected = (functional.conv2d(x, a, stride=2).flatten(1) @ b.T).numpy()
    found = numpy(from_pytorch(state, model, 0.0, **how)(X))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    back = to_pytorch_state_dict(model, mapping=how["mapping"])
    np.testing.assert_array_equal(back["b.weight"].numpy().reshape(5, 36), state["b.weight"])


def net(flavour="biprop", kept=0.5, binary=False, **settings):
    return nets.Published(nets.conv(2, 0.125, binary), SHAPE, flavour, kept, **settings)


def load(source, sparsity=None, layout="biprop", **settings):
    return from_pytorch(source, "conv2_mpt", sparsity, layout, input_shape=SHAPE, **settings)


def test_wrong_keys_and_shapes():
    good = net().state
    without = {key: value for key, value in good.items() if key not in ("convs.2.scores", "linear.2.weight")}
    with pytest.raises(CheckpointError, match="Missing: 'convs.2.scores', 'linear.2.weight'. Not of the network: none"):
        load(without, 0.5)
    with pytest.raises(CheckpointError, match="Missing: none. Not of the network: 'convs.9.weight'"):
        load(good | {"convs.9.weight": torch.ones(1)}, 0.5)
    with pytest.raises(CheckpointError, match=r"'convs.2.weight' must have shape \(8, 8, 3, 3\) for layer 'conv2'"):
        load(good | {"convs.2.weight": torch.ones(8, 8, 5, 5)}, 0.5)
    with pytest.raises(CheckpointError, match=r"'linear.0.scores' must have shape \(32, 128, 1, 1\).*\(32, 64, 1, 1\)"):
        load(good | {"linear.0.scores": torch.ones(32, 64, 1, 1)}, 0.5)
    with pytest.raises(CheckpointError, match="must have a kernel of 4 dimensions at 'conv1.weight' to be of resnet18"):
        from_pytorch(good, "resnet18_mpt", 0.5, "biprop")
    with pytest.raises(CheckpointError, match="infinity or NaN at 'linear.2.scores'"):
        load(good | {"linear.2.scores": torch.full((32, 32, 1, 1), torch.nan)}, 0.5)
    with pytest.raises(CheckpointError, match="'convs.0.weight' .float64. that float32 would round"):
        load(good | {"convs.0.weight": np.full((8, 3, 3, 3), 0.1)}, 0.5)
    with pytest.raises(CheckpointError, match="'convs.0.weight' .int64. that float32 would round"):
        load(good | {"convs.0.weight": np.full((8, 3, 3, 3), 2**24 + 1)}, 0.5)
    with pytest.raises(CheckpointError, match="no tensor at 'convs', but dict"):
        load({"convs": {}})
    jackpot = net("jackpots").state
    with pytest.raises(CheckpointError, match="masks must be 0 and 1"):
        load(jackpot | {"convs.0.b_mask": 0.5 * jackpot["convs.0.b_mask"]}, layout="auto")


def test_what_the_checkpoint_does_not_say():
    state, whole = net().state, nets.checkpoint(net(), "Conv2")
    with pytest.raises(ValueError, match="`sparsity` must be given"):
        load(state)
    with pytest.raises(ValueError, match="may be Biprop's or Edge-Popup's"):
        load(state, 0.5, "auto")
    with pytest.raises(ValueError, match="`layout` must be one of .*'auto'"):
        load(state, 0.5, "bitprop")
    with pytest.raises(CheckpointError, match="neither scores nor masks .* ordinary network"):
        load({"convs.0.weight": state["convs.0.weight"]}, 0.5, "auto")
    with pytest.raises(ValueError, match="`model` must be given"):
        from_pytorch(state, sparsity=0.5, layout="biprop")
    with pytest.raises(ValueError, match="`model` must be a model or one of .*conv2_mpt"):
        from_pytorch(state, "conv3_mpt", 0.5, "biprop")
    with pytest.raises(ValueError, match=r"`sparsity` must be left out or 1 - 0.5.*sparsity=0.8"):
        load(whole, 0.8)
    with pytest.raises(ValueError, match="`sparsity` must be a number in .*the fraction removed"):
        load(state, 1.5)
    with pytest.raises(ValueError, match="`mask` must not be a GlobalTopK: .* says 'SubnetConv'"):
        load(whole, mask=masks.GlobalTopK(0.5))
    with pytest.raises(ValueError, match="`mask` must be a GlobalTopK or None. Received: mask=TopK"):
        load(state, mask=masks.TopK(0.5))
    with pytest.raises(ValueError, match="`sparsity` must be left out where `mask` is a rule"):
        load(state, 0.5, mask=masks.GlobalTopK(0.5))
    with pytest.raises(ValueError, match=r"`sparsity` must be a number in .* Received: sparsity=GlobalTopK"):
        load(state, masks.GlobalTopK(0.5))
    with pytest.raises(ValueError, match="`sparsity` must be left out: the masks are in the file"):
        load(net("jackpots").state, 0.5, "auto")
    with pytest.raises(CheckpointError, match="`prune_rate`, the fraction kept, .* Received: prune_rate=-1"):
        load(whole | {"prune_rate": -1})
    with pytest.raises(CheckpointError, match="convolutions of type 'SampleSubnetConv'"):
        load(whole | {"conv_type": "SampleSubnetConv"})
    with pytest.raises(CheckpointError, match="of the network 'cResNet18_v2', which is not in the zoo"):
        load(whole | {"arch": "cResNet18_v2"})
    for field, value in (("arch", 3), ("arch", ["Conv2"]), ("conv_type", 1.5)):
        with pytest.raises(CheckpointError, match=f"must hold a name as '{field}'. Received: "):
            load(whole | {field: value}, layout="auto")
    with pytest.raises(CheckpointError, match="of the network 'Conv4', which is 'conv4_mpt', not 'conv2_mpt'"):
        load(whole | {"arch": "Conv4"})
    with pytest.raises(CheckpointError, match="of the network 'Conv2', whose activations are not binary"):
        load(whole, input_quantizer="approx_sign")
    assert load(nets.checkpoint(net(), "Conv2"), layout="auto").name == "conv2_mpt"
    shared = load(net("global").state, mask=masks.GlobalTopK(0.5))  # an old file, which does not say the type
    assert len({id(layer.mask) for layer in mpt_layers(shared)}) == 1


class RunsCode:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_files_that_are_no_checkpoints(tmp_path, capsys):
    file, harm = tmp_path / "model_best.pth", tmp_path / "harm"
    torch.save({**nets.checkpoint(net(), "Conv2"), "extra": RunsCode(harm)}, file)
    with pytest.raises(CheckpointError, match=r"model_best.pth is refused: its pickle would run \w+\.mkdir"):
        from_pytorch(file)
    assert not harm.exists()

    torch.save(nets.checkpoint(net(), "Conv2"), file)
    content = file.read_bytes()
    for damaged in (content[:1000], content[: len(content) // 2], content[:-30], b"", b"<!DOCTYPE html>", b"\x80\x02"):
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="model_best.pth is no PyTorch checkpoint, or is damaged"):
            from_pytorch(file)

    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:" + 64 * "a" + "\nsize 89478327\n"
    file.write_text(pointer)
    with pytest.raises(CheckpointError, match=r"Git LFS pointer to a file of 89,478,327 bytes. .*git lfs pull"):
        from_pytorch(file)
    assert main(["import", str(file), str(tmp_path / "out.mpt")]) == 1
    assert "Git LFS pointer" in capsys.readouterr().err and not (tmp_path / "out.mpt").exists()

    torch.save(torch.ones(3), file)
    with pytest.raises(CheckpointError, match="holds no state dict, but Tensor"):
        from_pytorch(file)
    with pytest.raises(CheckpointError, match="a path or a state dict. Received: int"):
        from_pytorch(3)
    with pytest.raises(FileNotFoundError):
        from_pytorch(tmp_path / "missing.pth")


def test_signs_of_zero():
    """A filter without a kept weight is 0 everywhere: PyTorch's sign is 0 there, ours 1."""
    made = net(binary=True, affine=False, constant=True)
    made.state["convs.0.scores"][2] *= 1e-3
    made.state["convs.1.running_mean"][2] = 0
    made._select()
    with pytest.raises(CheckpointError, match="'conv2' takes the sign of 64 activations that are exactly 0.*SteTern"):
        load(nets.checkpoint(made), input_quantizer="approx_sign")
    given = zoo.conv2_mpt(sparsity=0.5, width=0.125, input_shape=SHAPE, classes=7, input_quantizer="approx_sign")
    mpt_layers(given)[0].trainable = False
    before = [numpy(variable) for variable in given.variables], [layer.get_config() for layer in given.layers]
    with pytest.raises(CheckpointError, match="'conv2' takes the sign"):
        from_pytorch(nets.checkpoint(made), given)
    after = [numpy(variable) for variable in given.variables], [layer.get_config() for layer in given.layers]
    np.testing.assert_equal(after, before)
    model = load(nets.checkpoint(made), input_quantizer=quantizers.SteTern(threshold_value=0.0))
    pixels = np.round(8 * X) / 8
    expected = made.forward(pixels)
    assert np.abs(numpy(model(pixels)) - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("kernel_quantizer, flavour", [("scaled_sign", "biprop"), (None, "edge_popup")])
@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_our_tickets_in_pytorch(kernel_quantizer, flavour, sparsity):
    settings = {"width": 0.125, "input_shape": SHAPE, "kernel_quantizer": kernel_quantizer, "seed": 3, "classes": 7}
    model = zoo.conv2_mpt(sparsity=sparsity, **settings)
    state = to_pytorch_state_dict(model)
    made = net(flavour, round(1 - sparsity, 9))
    made.state = state
    made._select()
    expected = numpy(model(X))
    assert np.abs(made.forward(X) - expected).max() <= 1e-5 * np.abs(expected).max()
    again = load(state, sparsity, "biprop" if kernel_quantizer else "hidden_networks")
    for ours, theirs in zip(mpt_layers(model), mpt_layers(again), strict=True):
        np.testing.assert_array_equal(numpy(ours.subnet_mask), numpy(theirs.subnet_mask))
        np.testing.assert_array_equal(numpy(ours.scores), numpy(theirs.scores))
        np.testing.assert_allclose(numpy(ours.kernel), numpy(theirs.kernel), rtol=1e-6)


def test_masks_that_only_a_file_with_masks_can_have():
    """1 - 0.9 is more than 0.1 in floats, so Biprop's code drops other numbers of weights than a sparsity of 0.1."""
    settings = {"width": 0.125, "input_shape": SHAPE, "seed": 3, "classes": 10}
    model = zoo.conv2_mpt(sparsity=0.1, **settings)
    with pytest.raises(ValueError, match=r"no way to make the masks of layers \['logits'\].*lottery_jackpots"):
        to_pytorch_state_dict(model)
    with pytest.raises(ValueError, match="one sparsity, or one threshold, for all layers"):
        to_pytorch_state_dict(zoo.conv2_mpt(sparsity={"logits": 0.0}, **settings))
    with pytest.raises(ValueError, match="`layout` must be one of"):
        to_pytorch_state_dict(model, "hidden_networks")
    made = net("jackpots")
    made.state = to_pytorch_state_dict(model, "lottery_jackpots")
    made._select()
    expected = numpy(model(X))
    assert np.abs(made.forward(X) - expected).max() <= 1e-5 * np.abs(expected).max()
    again = load(made.state, layout="auto")
    np.testing.assert_allclose(numpy(again(X)), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def dense_checkpoint(rng):
    return {name: rng.normal(size=(3, 4)).astype(np.float32) for name in ("fc.weight", "fc.scores")}


def dense_model(**settings):
    return keras.Sequential([keras.Input((4,)), MPTDense(3, seed=1, name="fc", **settings)])


def test_a_model_that_has_run_already_predicts_anew(rng):
    model, x = dense_model(), rng.normal(size=(2, 4)).astype(np.float32)
    model.predict(x, verbose=0)
    from_pytorch(dense_checkpoint(rng), model, 0.3, "biprop", mapping={"fc": "fc"})  # 9 of 12 stay, divided by 8
    np.testing.assert_allclose(model.predict(x, verbose=0), numpy(model(x)), rtol=1e-5)


def test_a_frozen_model_is_trained_on(rng):
    model = keras.Sequential([keras.Input((4,)), dense_model()])
    model.trainable = False
    path = f"{model.layers[0].name}/fc"
    for trainable in (True, False):
        from_pytorch(dense_checkpoint(rng), model, 0.3, "biprop", mapping={path: "fc"}, trainable=trainable)
        assert [v.name for v in model.trainable_variables] == ["scores"] * trainable


@pytest.mark.parametrize("sparsity", [0.0, 0.05])
def test_a_global_threshold_that_removes_nothing(sparsity, rng):
    rule = masks.GlobalTopK(sparsity)
    model = dense_model(kernel_quantizer=None, mask=rule)
    from_pytorch(dense_checkpoint(rng), model, None, "hidden_networks", mask=rule, mapping={"fc": "fc"})
    assert numpy(model.layers[-1].subnet_mask).all()
