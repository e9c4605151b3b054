"""What every MPT layer promises, checked against numpy and against the plain Keras layer."""

import json

import keras
import numpy as np
import pytest
from keras import ops

from support import reference
from support.backend import gradient

SPARSITY = 0.6


def numpy(x):
    """Return a copy: PyTorch's own conversion would follow later changes of a variable."""
    return np.array(ops.convert_to_numpy(ops.cast(x, "float32")))


def inputs(shape):
    return np.random.default_rng(1).normal(size=(2, *shape)).astype(np.float32)


def randomize_scores(layer):
    """Give a built layer scores that no seed stands for, some of them zero."""
    scores = np.random.default_rng(2).normal(size=layer.scores.shape).astype(np.float32)
    scores[np.abs(scores) < 0.1] = 0
    layer.scores.assign(scores)
    return scores


def assert_reference_kernel(layer):
    """Mask and kernel of a built layer are those of the papers' formulas; returns the kernel."""
    frozen, scores = numpy(layer.frozen_kernel), numpy(layer.scores)
    mask = reference.mask(scores, int(layer.kept))
    np.testing.assert_array_equal(numpy(layer.subnet_mask), mask)
    name = "scaled_sign" if type(layer.kernel_quantizer).__name__ == "ScaledSign" else "identity"
    kernel = reference.KERNELS[name](frozen, mask)
    np.testing.assert_allclose(numpy(layer.kernel), kernel, rtol=1e-6)
    return kernel


def with_variable(layer, variable, x):
    """Return the function `value of the variable -> outputs for x`, with all other variables as they are."""

    def outputs(value):
        trainable, other = (
            [value if v is variable else ops.convert_to_tensor(v) for v in variables]
            for variables in (layer.trainable_variables, layer.non_trainable_variables)
        )
        return layer.stateless_call(trainable, other, x)[0]

    return outputs


def plain_twin(layer, x):
    """Return Keras' own layer holding the effective kernel."""
    twin = layer.plain()
    assert type(twin).__module__.startswith("keras.")
    twin.build(layer.prepare_plain(ops.convert_to_tensor(x)).shape)
    twin.set_weights([numpy(layer.kernel)] + ([] if layer.bias is None else [numpy(layer.bias)]))
    return twin


def check_mathematics(layer, x):
    """Kernel, outputs and score gradient, with the initial and with other scores."""
    x = ops.convert_to_tensor(x)
    assert tuple(layer.compute_output_shape(x.shape)) == tuple(layer(x).shape)
    assert_reference_kernel(layer)
    scores = randomize_scores(layer)
    assert_reference_kernel(layer)
    y, twin, prepared = layer(x), plain_twin(layer, x), layer.prepare_plain(x)
    np.testing.assert_allclose(numpy(y), numpy(twin(prepared)), rtol=1e-5, atol=1e-6)

    upstream = np.random.default_rng(3).normal(size=y.shape).astype(np.float32)
    score_gradient = gradient(with_variable(layer, layer.scores, x), scores, upstream)
    plain_kernel = twin.trainable_variables[0]
    kernel_gradient = gradient(with_variable(twin, plain_kernel, prepared), numpy(plain_kernel), upstream)
    expected = reference.score_gradient(kernel_gradient, numpy(layer.frozen_kernel), scores)
    assert np.abs(expected).max() > 0.01 and (expected[numpy(layer.subnet_mask) == 0] != 0).any()
    np.testing.assert_allclose(score_gradient, expected, rtol=1e-5, atol=1e-5)


def check_trainable(layer):
    """The scores (and the bias) are trained, the frozen kernel never."""
    trained = {"scores"} if layer.bias is None else {"scores", "bias"}
    assert {v.name for v in layer.trainable_variables} == trained
    assert {v.name for v in layer.non_trainable_variables} >= {"frozen_kernel", "quota", "threshold"}
    layer.trainable = False
    assert layer.trainable_variables == []
    layer.trainable = True
    assert {v.name for v in layer.trainable_variables} == trained
    assert not layer.frozen_kernel.trainable


def check_read_only(layer):
    """What training computes, or was drawn from, is not assigned to in vain; what Keras' `build` assigns is taken."""
    for subnet in layer.subnets:
        setattr(layer, subnet.name, subnet.frozen_kernel)
        with pytest.raises(AttributeError, match=f"`{subnet.name}` of layer '{layer.name}' cannot be assigned to"):
            setattr(layer, subnet.name, numpy(subnet.kernel))
    with pytest.raises(AttributeError, match="`seed` of layer .* Received: 5"):
        layer.seed = 5


def check_round_trips(layer, x, directory):
    """Config, clone, `.keras` and `.weights.h5` give the same layer again, which has a regularizer of its scores."""
    model = keras.Sequential([keras.Input(x.shape[1:]), layer])
    config = layer.get_config()
    assert type(layer).from_config(json.loads(json.dumps(config))).get_config() == config
    clone = keras.models.clone_model(model)
    assert clone.layers[0].get_config() == config
    for first, second in zip(layer.get_weights(), clone.layers[0].get_weights(), strict=True):
        np.testing.assert_array_equal(first, second)
    assert [numpy(loss) for loss in clone.losses] == [numpy(loss) for loss in model.losses] != []

    randomize_scores(layer)
    layer.kept.assign(layer.kept - 2)
    layer.frozen_kernel.assign(-layer.frozen_kernel)
    expected = numpy(model(x))
    assert (expected != numpy(clone(x))).any()
    model.save(directory / "model.keras")
    model.save_weights(directory / "model.weights.h5")
    loaded = keras.models.load_model(directory / "model.keras")
    assert loaded.layers[0].get_config() == config
    clone.load_weights(directory / "model.weights.h5")
    for copy in (loaded, clone):
        np.testing.assert_array_equal(numpy(copy(x)), expected)
        np.testing.assert_allclose([numpy(loss) for loss in copy.losses], [numpy(loss) for loss in model.losses])


def check_layer(cls, settings, shape, directory):
    """The contract of a layer class with some settings, for inputs of a shape (without batch)."""
    x = inputs(shape)

    def make(**more):
        layer = cls(**settings, sparsity=SPARSITY, **more)
        layer.build(x.shape)
        return layer

    first, again, other = (make(seed=seed) for seed in (3, 3, 4))
    for variable in ("frozen_kernel", "scores"):
        values = [numpy(getattr(layer, variable)) for layer in (first, again, other)]
        np.testing.assert_array_equal(values[0], values[1])
        assert (values[0] != values[2]).any()
    for kernel_quantizer in ("scaled_sign", "identity"):
        check_mathematics(make(seed=3, kernel_quantizer=kernel_quantizer), x)
    check_trainable(first)
    check_read_only(first)
    regularizer = keras.regularizers.L2(0.5)  # no default: a config that leaves it out would give another layer
    check_round_trips(make(seed=3, scores_initializer="ones", scores_regularizer=regularizer), x, directory)
