"""`to_mpt`: ordinary Keras models become ones of MPT layers, and nothing else about them changes."""

import warnings

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import keras_mpt
from keras_mpt import layers
from keras_mpt.masks import GlobalTopK, TopK
from keras_mpt.models import mpt_layers, mpt_layers_by_path, summary, to_functional, to_jackpot, to_mpt
from support import reference
from support.layer_contract import numpy
from support.networks import X, Y

slow_on_jax = pytest.mark.slow_with("jax")  # which compiles for each shape; these tests look at no value of it
EXAMPLES = 5 if keras.backend.backend() == "jax" else 25  # JAX compiles each shape
CONVERTIBLE = {
    keras.layers.Dense: layers.MPTDense,
    keras.layers.Conv1D: layers.MPTConv1D,
    keras.layers.Conv2D: layers.MPTConv2D,
    keras.layers.Conv3D: layers.MPTConv3D,
    keras.layers.DepthwiseConv2D: layers.MPTDepthwiseConv2D,
    keras.layers.Conv2DTranspose: layers.MPTConv2DTranspose,
}


def outputs(model, x=X):
    return [numpy(y) for y in keras.tree.flatten(model(x))]


def assert_same_outputs(model, source, x=X):
    for y, wanted in zip(outputs(model, x), outputs(source, x), strict=True):
        assert np.ptp(wanted) > 1e-3
        np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


def trained(model):
    """Give all weights values that no initializer gives, those of kernels small enough to keep the signal."""
    rng = np.random.default_rng(7)
    for layer in model._flatten_layers(include_self=False, recursive=True):
        if not layer._flatten_layers(include_self=False):
            weights = [rng.uniform(0.5, 1.5, w.shape) * np.sign(w + 1e-9) for w in layer.get_weights()]
            layer.set_weights([w * b if b.ndim > 1 else w for w, b in zip(weights, layer.get_weights(), strict=True)])
    return model


def sequential():
    kl = keras.layers
    return keras.Sequential(
        [
            keras.Input(X.shape[1:], name="image"),
            kl.Conv2D(4, 3, padding="same", activation="relu", name="conv"),
            kl.BatchNormalization(name="norm"),
            kl.Conv2D(4, 3, strides=2, groups=2, use_bias=False, name="grouped"),
            kl.Flatten(name="flat"),
            kl.Dropout(0.5, name="drop"),
            kl.Dense(2, name="logits"),
        ],
        name="plain_stack",
    )


def every_kind():
    """All kinds of layers that become MPT layers, operations, two inputs, a dict of outputs."""
    kl = keras.layers
    images, numbers = keras.Input(X.shape[1:], name="images"), keras.Input((3,), name="numbers")
    x = kl.DepthwiseConv2D(3, depth_multiplier=2, padding="same", name="depthwise")(images)
    x = kl.Conv2DTranspose(3, 2, strides=2, activation="tanh", name="transposed")(x) * 2.0 - 0.5
    y = kl.Conv3D(2, 2, dilation_rate=2, name="three")(kl.Reshape((4, 4, 4, 3))(x[:, :8, :8]))
    z = kl.Conv1D(4, 3, padding="causal", name="one")(kl.Reshape((-1, 3))(x))
    n = kl.Dense(5, activation="relu", name="dense")(numbers)
    head = kl.Concatenate()([kl.Flatten()(y), n])
    return keras.Model({"images": images, "numbers": numbers}, {"a": kl.Dense(2, name="a")(head), "b": z})


def nested_and_shared():
    """A layer called twice in a nested model that is called twice, and a layer that both models use."""
    kl = keras.layers
    everywhere = kl.Dense(4, name="everywhere")
    a = keras.Input((4,))
    twice = kl.Dense(4, name="twice", activation="relu")
    inner = keras.Model(a, everywhere(twice(twice(a))), name="inner")
    stack = keras.Sequential([kl.Dense(4, name="twice"), kl.LayerNormalization()], name="stack")
    inputs = keras.Input((4,))
    return keras.Model(inputs, everywhere(stack(inner(inner(inputs)))) + inputs, name="outer")


INPUTS = {
    "sequential": X,
    "every_kind": {"images": X, "numbers": X[:, 0, :3, 0]},
    "nested_and_shared": X.reshape(32, -1)[:, :4],
}
SOURCES = {build.__name__: build for build in (sequential, every_kind, nested_and_shared)}


@pytest.fixture(params=SOURCES)
def source(request):
    return trained(SOURCES[request.param]()), INPUTS[request.param]


def layers_by_path(model, prefix=""):
    found = {}
    for layer in model.layers:
        found[prefix + layer.name] = layer
        if isinstance(layer, keras.Model):
            found |= layers_by_path(layer, f"{prefix}{layer.name}/")
    return found


def test_nothing_pruned_is_the_model_itself(source):
    model, x = source
    before = model.get_weights()
    twin = to_jackpot(model, 0.0, skip=[])
    assert_same_outputs(twin, model, x)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert type(twin) is type(model) and twin.name == model.name
    assert keras.tree.map_structure(np.shape, twin(x)) == keras.tree.map_structure(np.shape, model(x))


@slow_on_jax
def test_every_layer_has_its_twin(source):
    model, _ = source
    twins = layers_by_path(to_mpt(model, 0.6, seed=3))
    originals = layers_by_path(model)
    assert list(twins) == list(originals)
    for path, layer in originals.items():
        twin = twins[path]
        assert twin is not layer and type(twin) is CONVERTIBLE.get(type(layer), type(layer))
        config, ours = layer.get_config(), twin.get_config()
        if isinstance(layer, keras.Model):
            continue
        if type(layer) not in CONVERTIBLE:
            assert ours == config
            for old, new in zip(layer.get_weights(), twin.get_weights(), strict=True):
                np.testing.assert_array_equal(old, new)
            continue
        kept = [key for key in config if not key.startswith(("kernel_", "depthwise_", "quantization_"))]
        kept += ["kernel_size"] if "kernel_size" in config else []
        assert {key: ours[key] for key in kept} == {key: config[key] for key in kept}
        assert twin.sparsity == 0.6
        kernel = "depthwise" if isinstance(layer, keras.layers.DepthwiseConv2D) else "kernel"
        assert ours[f"{kernel}_initializer"]["class_name"] == "SignedConstant"
        if layer.use_bias:
            np.testing.assert_array_equal(numpy(twin.bias), numpy(layer.bias))
        assert not np.array_equal(numpy(twin.frozen_kernel), numpy(layer.kernel))


def test_shared_layers_are_shared():
    twin = to_mpt(trained(nested_and_shared()), seed=0)
    assert list(mpt_layers_by_path(twin)) == ["inner/twice", "inner/everywhere", "stack/twice"]
    assert twin.get_layer("everywhere") is twin.get_layer("inner").get_layer("everywhere")


@given(st.integers(1, 400), st.integers(1, 5), st.floats(0, 0.99), st.integers(0, 2**32), st.booleans())
@settings(deadline=None, max_examples=EXAMPLES)
def test_pretrained_scores_are_magnitude_pruning(inputs, units, sparsity, seed, ties):
    rng = np.random.default_rng(seed)
    kernel = rng.integers(-3, 4, (inputs, units)) / 2 if ties else rng.normal(size=(inputs, units))
    kernel = kernel.astype(np.float32)
    model = keras.Sequential([keras.Input((inputs,)), keras.layers.Dense(units, use_bias=False)])
    model.set_weights([kernel])
    (layer,) = mpt_layers(to_jackpot(model, sparsity, skip=[]))
    wanted = reference.mask(kernel, kernel.size - int(np.floor(sparsity * kernel.size + 1e-9)))
    np.testing.assert_array_equal(numpy(layer.frozen_kernel), kernel)
    np.testing.assert_array_equal(numpy(layer.scores), np.where(wanted, np.float32(1), np.float32(0.99)))
    np.testing.assert_array_equal(numpy(layer.subnet_mask), wanted)
    np.testing.assert_array_equal(numpy(layer.kernel), kernel * wanted)


def test_pretrained_with_one_threshold(source):
    model, x = source
    rule = GlobalTopK(0.7)
    twin = to_jackpot(model, skip=[], mask=rule)
    assert all(layer.mask is rule for layer in mpt_layers(twin))
    group = mpt_layers(twin)[0].subnets[0].group
    assert len(group) == len(mpt_layers(twin))
    everything = np.concatenate([numpy(subnet.frozen_kernel).ravel() for subnet in group])
    wanted = reference.mask(everything, everything.size - int(np.floor(0.7 * everything.size + 1e-9)))
    outputs(twin, x)
    masks = np.concatenate([numpy(subnet.mask).ravel() for subnet in group])
    np.testing.assert_array_equal(masks, wanted)


@slow_on_jax
def test_random_kernels_come_from_one_seed(source):
    model, _ = source
    first, same, other = (mpt_layers_by_path(to_mpt(model, seed=seed)) for seed in (1, 1, 2))
    for path, layer in first.items():
        np.testing.assert_array_equal(numpy(layer.frozen_kernel), numpy(same[path].frozen_kernel))
        np.testing.assert_array_equal(numpy(layer.scores), numpy(same[path].scores))
        assert layer.seed != other[path].seed
    assert len({layer.seed for layer in first.values()}) == len(first)
    path = list(first)[-1]
    (alone,) = mpt_layers(to_mpt(model, seed=1, only=path))
    assert alone.seed == first[path].seed


@slow_on_jax
def test_arguments_reach_the_layers():
    model = sequential()
    twin = to_mpt(
        model,
        {"conv": 0.25, "logits": 0.75},
        kernel_initializer="kaiming_normal",
        kernel_quantizer=None,
        input_quantizer="approx_sign",
        mask=lambda sparsity: TopK(sparsity, selector="sort"),
    )
    found = mpt_layers_by_path(twin)
    assert {path: layer.sparsity for path, layer in found.items()} == {"conv": 0.25, "grouped": 0.5, "logits": 0.75}
    for layer in found.values():
        assert layer.mask.selector == "sort" and type(layer.input_quantizer) is keras_mpt.quantizers.ApproxSign
        assert type(layer.kernel_quantizer) is keras_mpt.quantizers.Identity
        assert type(layer.kernel_initializer) is keras_mpt.initializers.KaimingNormal
    assert all(type(layer.kernel_quantizer) is keras_mpt.quantizers.ScaledSign for layer in mpt_layers(to_mpt(model)))


@slow_on_jax
@pytest.mark.parametrize(
    "which, converted",
    [
        ({"only": ["conv"]}, ["conv"]),
        ({"only": "conv", "skip": ()}, ["conv"]),
        ({"skip": ["conv", "norm"]}, ["grouped", "logits"]),
        ({"only": [keras.layers.Conv2D]}, ["conv", "grouped"]),
        ({"only": keras.layers.Conv2D, "skip": "grouped"}, ["conv"]),
    ],
    ids=str,
)
def test_only_and_skip(which, converted):
    model = trained(sequential())
    twin = to_mpt(model, **which)
    assert list(mpt_layers_by_path(twin)) == converted
    for name in {"conv", "grouped", "logits"} - set(converted):
        assert type(twin.get_layer(name)) is type(model.get_layer(name))
        for old, new in zip(model.get_layer(name).get_weights(), twin.get_layer(name).get_weights(), strict=True):
            np.testing.assert_array_equal(old, new)


@slow_on_jax
def test_paths_of_nested_models():
    model = nested_and_shared()
    assert list(mpt_layers_by_path(to_mpt(model, only=["inner/twice"]))) == ["inner/twice"]
    assert list(mpt_layers_by_path(to_mpt(model, only=["inner"]))) == ["inner/twice", "inner/everywhere"]
    found = mpt_layers_by_path(to_mpt(model, {"stack/twice": 0.9}))
    assert [layer.sparsity for layer in found.values()] == [0.5, 0.5, 0.9]


@slow_on_jax
def test_two_calls_convert_in_two_ways():
    model = trained(sequential())
    first = to_mpt(model, only="conv", seed=1)
    twin = to_mpt(first, 0.8, input_quantizer="ste_sign", seed=1)
    found = mpt_layers_by_path(twin)
    assert [layer.input_quantizer is None for layer in found.values()] == [True, False, False]
    assert [layer.sparsity for layer in found.values()] == [0.5, 0.8, 0.8]
    assert len({layer.seed for layer in found.values()}) == 3
    for name in ("frozen_kernel", "scores", "bias"):
        np.testing.assert_array_equal(numpy(getattr(found["conv"], name)), numpy(getattr(first.layers[0], name)))


def test_trained_further_and_compiled():
    model = sequential()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    steps = 1 if keras.backend.backend() == "torch" else 2
    model.compile(keras.optimizers.SGD(0.25, momentum=0.5), loss, metrics=["accuracy"], steps_per_execution=steps)
    model.fit(X, Y, epochs=1, verbose=0)
    twin = to_jackpot(model, 0.3, skip=[])
    assert twin.compiled and twin.optimizer is not model.optimizer and int(twin.optimizer.iterations) == 0
    assert twin.optimizer.get_config() == model.optimizer.get_config()
    assert twin.loss.get_config() == loss.get_config() and twin.steps_per_execution == steps
    before = {
        path: (numpy(layer.frozen_kernel), numpy(layer.scores)) for path, layer in mpt_layers_by_path(twin).items()
    }
    history = twin.fit(X, Y, batch_size=8, epochs=6, verbose=0).history
    assert history["loss"][-1] < history["loss"][0] and "accuracy" in history
    for path, layer in mpt_layers_by_path(twin).items():
        np.testing.assert_array_equal(numpy(layer.frozen_kernel), before[path][0])
        assert (numpy(layer.scores) != before[path][1]).any()


def unregistered_loss(y_true, y_pred):
    return keras.ops.mean(y_pred, axis=-1)


def test_what_cannot_be_compiled_again_is_told():
    model = sequential()
    model.compile("sgd", unregistered_loss)
    with pytest.warns(UserWarning, match="(?s)could not be compiled.*unregistered_loss"):
        twin = to_mpt(model)
    assert not twin.compiled


def test_metrics_that_keras_cannot_use_are_left_out():
    """As files of Keras 2 have them: the function of a metric is a name there."""
    wrapper = {"class_name": "MeanMetricWrapper", "config": {"name": "acc", "fn": "sparse_categorical_accuracy"}}
    model = sequential()
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=[keras.metrics.deserialize(wrapper)])
    with pytest.warns(UserWarning, match="compiled without metrics: .* Received: acc$"):
        twin = to_mpt(model, seed=0)
    assert list(twin.fit(X, Y, verbose=0).history) == ["loss"]


def test_trainable_is_kept():
    model = nested_and_shared()
    model.get_layer("inner").trainable = False
    model.get_layer("inner").get_layer("twice").trainable = True
    twin = to_mpt(model)
    flags = {path: layer.trainable for path, layer in layers_by_path(model).items()}
    assert {path: layer.trainable for path, layer in layers_by_path(twin).items()} == flags
    kernels = [w.path for w in model.trainable_weights if w.name == "kernel"]
    assert len(kernels) == 2
    assert [w.path for w in twin.trainable_weights if w.name == "scores"] == [
        k.replace("kernel", "scores") for k in kernels
    ]


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "float16"])
def test_dtype_policies(policy):
    keras.config.set_dtype_policy(policy)
    try:
        model = sequential()
    finally:
        keras.config.set_dtype_policy("float32")
    twin = to_jackpot(trained(model), 0.0, skip=[])
    assert twin.dtype_policy.name == policy
    for layer, old in zip(twin.layers, model.layers, strict=True):
        assert layer.dtype_policy.name == old.dtype_policy.name
    for layer in mpt_layers(twin):
        np.testing.assert_array_equal(numpy(layer.frozen_kernel), numpy(model.get_layer(layer.name).kernel))
    assert_same_outputs(twin, model)


def test_layers_keep_what_they_remember():
    normalization = keras.layers.Normalization()
    scaled = keras.layers.Lambda(lambda x: 2 * x)
    conv = keras.layers.Conv2D(3, 3)
    model = trained(keras.Sequential([keras.Input(X.shape[1:]), normalization, scaled, conv]))
    normalization.adapt(X)
    assert_same_outputs(to_jackpot(model, 0.0, skip=[]), model)


@pytest.mark.tensorflow_only
def test_vocabularies_are_kept():
    lookup = keras.layers.StringLookup()
    lookup.adapt(np.array([["a"], ["b"], ["c"]]))
    words = keras.Input((1,), dtype="string")
    x = keras.layers.Flatten()(keras.layers.Embedding(4, 3, name="embedding")(lookup(words)))
    model = trained(keras.Model(words, keras.layers.Dense(2)(x)))
    twin = to_jackpot(model, 0.0, skip="embedding")
    assert_same_outputs(twin, model, keras.ops.convert_to_tensor([["a"], ["c"], ["?"]]))


class WithStep(keras.Model):
    def train_step(self, data):
        return {"mine": 1.0}


class Stack(keras.Sequential):
    def __init__(self):
        super().__init__([keras.Input((3,)), keras.layers.Dense(2)])


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.first, self.second = keras.layers.Dense(4, name="first"), keras.layers.Dense(2, name="second")

    def call(self, x):
        return self.second(keras.ops.relu(self.first(x)))


def test_classes_of_functional_models():
    inputs = keras.Input((3,))
    model = WithStep(inputs, keras.layers.Dense(2)(inputs))
    assert type(to_mpt(model)) is WithStep
    with pytest.raises(ValueError, match="(?s)`model` must have a class.*keras.Model\\(model.inputs.*Received: Stack"):
        to_mpt(Stack())
    stack = Stack()
    assert len(mpt_layers(to_mpt(keras.Model(stack.inputs, stack.outputs)))) == 1


def test_subclassed_models_are_told_what_to_do():
    model, inputs = Subclassed(), keras.Input((4,))
    x = X.reshape(32, -1)[:, :4]
    model(x)
    trained(model)
    with pytest.raises(
        ValueError, match=r"subclassed.*keras_mpt.models.to_functional\(model, keras.Input\(shape\)\).*"
    ):
        to_mpt(model)
    with pytest.raises(ValueError, match="(?s)subclassed.*Received: Subclassed"):
        to_mpt(keras.Model(inputs, model(inputs)))
    twin = to_jackpot(to_functional(model, inputs), 0.0, skip=[])
    assert list(mpt_layers_by_path(twin)) == ["first", "second"]
    assert_same_outputs(twin, model, x)


BAD = {
    "initializer": ({"kernel_initializer": "he_norm"}, "`kernel_initializer` must be one of"),
    "quantizer": ({"kernel_quantizer": "approx_sign"}, "pass it as input_quantizer"),
    "only": ({"only": ["con"]}, "`only` must name layers that are converted. Received: 'con'. Did you mean 'conv'"),
    "only without twin": ({"only": ["norm"]}, "`only` must name layers that are converted"),
    "only of a class": ({"only": [keras.layers.Conv3D]}, "`only` must name layers that are converted"),
    "only of another kind": ({"only": [3]}, "`only` must hold paths and classes of layers. Received: 3"),
    "skip": ({"skip": ["logit"]}, "`skip` must name layers of the model. Received: 'logit'. Did you mean 'logits'"),
    "nothing left": ({"only": ["conv"], "skip": ["conv"]}, "There must be a layer to convert"),
    "sparsity": ({"sparsity": 1.0}, "`sparsity` must be a number in"),
    "sparsity of one": ({"sparsity": {"conv": -1}}, "`sparsity` must be a number in"),
    "sparsity of none": ({"sparsity": {"logitz": 0.5}}, "`sparsity` must name.*'logitz'. Did you mean 'logits'"),
    "sparsity of a skipped one": ({"sparsity": {"conv": 0.5}, "skip": "conv"}, "`sparsity` must name layers that are"),
    "sparsity of no layers": ({"sparsity": lambda kernels: None}, "`sparsity` must return a dict .* Received: None"),
    "sparsity of all": ({"sparsity": lambda kernels: 0.8}, "`sparsity` must return a dict .* Received: 0.8"),
    "mask": ({"mask": 3}, "`mask` must be a rule"),
    "mask of none": ({"mask": lambda s: None}, "`mask` must return a rule .* Received: None for 'conv'"),
    "mask and sparsity": ({"mask": TopK(0.5), "sparsity": 0.5}, "`sparsity` must be left out"),
    "seed": ({"seed": -1}, "`seed` must be an integer"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    arguments, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        to_mpt(sequential(), **arguments)


def test_quantized_layers_are_not_converted():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.quantize("int8")
    with pytest.raises(ValueError, match="There must be a layer to convert; those that are quantized .* are not"):
        to_mpt(model)


def test_layers_with_low_rank_weights_are_not_converted():
    adapted, last = keras.layers.Dense(3, name="adapted"), keras.layers.Dense(2, name="last")
    model = keras.Sequential([keras.Input((4,)), adapted, last])
    adapted.enable_lora(2)
    with pytest.warns(UserWarning, match=r"low-rank weights \(LoRA\), and stay as they are.*: adapted$"):
        twin = to_mpt(model)
    assert list(mpt_layers_by_path(twin)) == ["last"]


def test_a_quantized_layer_beside_mpt_layers_is_named(tmp_path):
    quantized, last = keras.layers.Dense(3, name="quantized"), keras.layers.Dense(2, name="last")
    model = keras.Sequential([keras.Input((4,)), quantized, last])
    quantized.quantize("int8")
    with pytest.warns(UserWarning, match="These layers are quantized or .*: quantized$"):
        twin = to_mpt(model, seed=0)
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    np.testing.assert_array_equal(numpy(twin.layers[0](x)), numpy(quantized(x)))
    np.testing.assert_array_equal(numpy(keras_mpt.models.strip(twin)(x)), numpy(twin(x)))
    message = "must not have layers that Keras has quantized to be {}.*'quantized' of class Dense with mode 'int8'"
    with pytest.raises(ValueError, match=message.format("a ticket")):
        keras_mpt.save_ticket(twin, tmp_path / "a.mpt")
    if keras.backend.backend() == "tensorflow":
        with pytest.raises(ValueError, match=message.format("converted")):
            keras_mpt.convert.to_tflite(twin, tmp_path / "a.tflite")


def test_models_with_one_rule_have_thresholds_of_their_own():
    rule = GlobalTopK(0.5)
    first, second = (to_mpt(sequential(), mask=rule, seed=0) for _ in range(2))
    before = [numpy(layer.subnet_mask) for layer in mpt_layers(second)]
    for layer in mpt_layers(first):
        layer.scores.assign(-10 * numpy(layer.scores) ** 2)
    for layer, mask in zip(mpt_layers(second), before, strict=True):
        np.testing.assert_array_equal(numpy(layer.subnet_mask), mask)


def test_inputs_that_may_be_left_out():
    class Sum(keras.layers.Layer):
        def call(self, x, y=None):
            return x if y is None else x + y

        def compute_output_shape(self, x_shape, y_shape=None):
            return x_shape

    inputs = [keras.Input((4,), name="x"), keras.Input((4,), name="y", optional=True)]
    model = trained(keras.Model(inputs, keras.layers.Dense(2)(Sum()(*inputs))))
    twin, x = to_jackpot(model, 0.0, skip=[]), X.reshape(32, -1)[:, :4]
    for pair in ([x, None], [x, x]):
        assert_same_outputs(twin, model, pair)


def test_what_is_no_model():
    with pytest.raises(TypeError, match="`model` must be a Keras model; .*load_ticket.* Received: 'ticket.mpt'"):
        to_mpt("ticket.mpt")


@pytest.mark.parametrize("convert", [to_mpt, to_jackpot])
def test_unbuilt_models(convert):
    with pytest.raises(ValueError, match="`model` must be built to be converted: call it on data"):
        convert(keras.Sequential([keras.layers.Dense(3)]))


def test_a_path_is_hinted_at():
    with pytest.raises(ValueError, match="Did you mean 'stack/twice'|Did you mean 'inner/twice'"):
        to_mpt(nested_and_shared(), only="twice")


def test_models_that_were_never_trained(tmp_path):
    model = sequential()
    with pytest.warns(UserWarning, match="initializers drew, not pretrained: conv, grouped, logits") as seen:
        to_jackpot(model, skip=[])
    assert len([warning for warning in seen if issubclass(warning.category, UserWarning)]) == 1
    model.save_weights(tmp_path / "fresh.weights.h5")
    other = sequential()
    other.load_weights(tmp_path / "fresh.weights.h5")
    with pytest.warns(UserWarning, match="seems never to have been trained"):
        to_jackpot(other, skip=[])


def test_trained_models_get_no_warning(tmp_path):
    model = sequential()
    model.compile("sgd", "mse")
    model.fit(X, np.zeros((32, 2)), verbose=0)
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    loaded = sequential()
    loaded.load_weights(tmp_path / "model.weights.h5")
    for each in (model, keras.models.load_model(tmp_path / "model.keras"), loaded):
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            to_jackpot(each, skip=[])


def test_a_fresh_head_is_named():
    model = trained(sequential())
    head = keras.layers.Dense(3, name="head")
    both = keras.Model(model.inputs, head(model.outputs[0]))
    with pytest.warns(UserWarning, match="initializers drew, not pretrained: head$"):
        to_jackpot(both, skip=[])


def test_pretrained_weights_must_be_finite():
    model = trained(sequential())
    kernel = numpy(model.get_layer("conv").kernel)
    kernel[0, 0, 0, 0] = np.nan
    model.get_layer("conv").kernel.assign(kernel)
    with pytest.raises(ValueError, match="must be finite.*'conv'"):
        to_jackpot(model, skip=[])


class Scaling(keras.layers.Layer):
    """A layer of a user's with a matrix."""

    def build(self, shape):
        self.factors = self.add_weight(shape=shape[1:], initializer="ones")

    def call(self, x):
        return x * self.factors


def test_layers_without_a_twin_are_listed():
    kl = keras.layers
    model = keras.Sequential(
        [keras.Input(X.shape[1:]), Scaling(name="scaling"), kl.Flatten(), kl.Dense(2, name="logits")]
    )
    with pytest.warns(UserWarning, match="no MPT twin.*: Scaling .*: scaling$"):
        twin = to_mpt(model)
    rows = {row["name"]: row["type"] for row in summary(twin, print_fn=str).rows}
    assert rows["scaling"] == "Scaling" and rows["logits"] == "MPTDense"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        to_mpt(model, skip=["scaling"])
        to_mpt(model, only=["logits"])


def test_lost_regularizers_are_told():
    conv = keras.layers.Conv2D(2, 3, kernel_regularizer="l2", bias_regularizer="l1", name="conv")
    depthwise = keras.layers.DepthwiseConv2D(2, depthwise_constraint="unit_norm", name="depthwise")
    model = keras.Sequential([keras.Input(X.shape[1:]), conv, depthwise])
    with pytest.warns(UserWarning, match="conv \\(kernel_regularizer\\), depthwise \\(depthwise_constraint\\)"):
        twin = to_mpt(model)
    assert isinstance(twin.get_layer("conv").bias_regularizer, keras.regularizers.L1)


def test_random_tickets_hold_seeds(tmp_path):
    model = trained(sequential())
    twin = to_mpt(model, seed=1)
    ticket = keras_mpt.save_ticket(twin, tmp_path / "random.mpt")
    assert {entry["kernel"]["source"]["from"] for entry in ticket.layers.values() if entry["kernel"]} == {"seed"}
    assert all(entry["kernel"]["values"] is None for entry in ticket.layers.values() if entry["kernel"])
    assert_same_outputs(keras_mpt.load_ticket(tmp_path / "random.mpt"), twin)


def test_pretrained_tickets_hold_masks_beside_their_base(tmp_path):
    model = trained(sequential())
    twin = to_jackpot(model, 0.4, skip=[])
    model.save(tmp_path / "base.keras")
    saved = keras_mpt.save_ticket(twin, tmp_path / "jackpot.mpt", base=model)
    alone = keras_mpt.save_ticket(twin, tmp_path / "alone.mpt")
    kernels = [entry["kernel"] for entry in saved.layers.values() if entry["kernel"]]
    assert len(kernels) == 3 and all(
        k["source"]["from"] == "base" and k["values"] is k["changes"] is None for k in kernels
    )
    values = [entry["kernel"] for entry in alone.layers.values() if entry["kernel"]]
    for entry in values:
        assert entry["source"] == {"from": "nothing"} and len(alone.blobs[entry["values"]]) == 4 * entry["kept"]
    base = keras.models.load_model(tmp_path / "base.keras")
    for loaded in (
        keras_mpt.load_ticket(tmp_path / "jackpot.mpt", base=base),
        keras_mpt.load_ticket(tmp_path / "jackpot.mpt", base=twin, trainable=True),
        keras_mpt.load_ticket(tmp_path / "alone.mpt"),
    ):
        assert_same_outputs(loaded, twin)
        for ours, theirs in zip(mpt_layers(twin), mpt_layers(loaded), strict=True):
            np.testing.assert_array_equal(numpy(ours.kernel), numpy(theirs.kernel))
            np.testing.assert_array_equal(numpy(ours.scores), numpy(theirs.scores))
    with pytest.raises(keras_mpt.TicketError, match="pass that as `base`"):
        keras_mpt.load_ticket(tmp_path / "jackpot.mpt")


def test_frozen_layers_within_layers_stay_frozen():
    inner = keras.layers.Dense(4, name="inner", trainable=False)
    inputs = keras.Input((5, 6))
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.TimeDistributed(inner)(inputs)))
    twin = to_mpt(model, skip=["time_distributed"], seed=0)
    assert [variable.name for variable in twin.trainable_variables] == ["bias", "scores"]
    assert twin.layers[1].trainable and not twin.layers[1].layer.trainable
