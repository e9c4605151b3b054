"""Statistics of batch normalization are those of the data, whatever holds the layer."""

import re
import warnings

import keras
import numpy as np
import pytest

from keras_mpt.layers import MPTDense
from keras_mpt.models import recalibrate_batch_norm, to_jackpot
from support.layer_contract import numpy

kl = keras.layers
X = (np.random.default_rng(0).normal(size=(30, 4)) * [1, 2, 3, 4] + [0, 5, 0, -5]).astype("float32")


def norm(name="norm", **settings):
    return kl.BatchNormalization(moving_mean_initializer="ones", name=name, **settings)


def statistics(layer):
    return numpy(layer.moving_mean), numpy(layer.moving_variance)


def assert_statistics(layer, values, axis=0):
    mean, variance = statistics(layer)
    values = np.asarray(values, np.float64)
    np.testing.assert_allclose(mean, values.mean(axis=axis), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(variance, values.var(axis=axis), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch_size", [30, 8])
def test_they_are_those_of_numpy(batch_size):
    """Also behind dropout, and of a second layer: its inputs were normalized batch by batch."""
    model = keras.Sequential([keras.Input((4,)), kl.Dropout(0.5), norm("a"), MPTDense(5, seed=1), norm("b")])
    a, dense, b = model.get_layer("a"), model.layers[-2], model.get_layer("b")
    a.gamma.assign([1.0, 2.0, 0.5, 1.0])
    scores = numpy(dense.scores)
    assert recalibrate_batch_norm(model, X, batch_size) is None
    assert_statistics(a, X)
    edges = {30: [0, 30], 8: [0, 7, 15, 22, 30]}[batch_size]  # parts of equal size, as nearly as can be
    parts = [X[begin:end].astype(np.float64) for begin, end in zip(edges[:-1], edges[1:], strict=True)]
    normalized = [(x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + a.epsilon) * numpy(a.gamma) for x in parts]
    assert_statistics(b, np.concatenate(normalized) @ numpy(dense.kernel))
    np.testing.assert_array_equal(numpy(dense.scores), scores)
    assert "call" not in vars(a)
    if batch_size == 30:  # so these are normalized in inference
        np.testing.assert_allclose(numpy(model(X)).mean(axis=0), 0, atol=1e-5)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.norm = norm()

    def call(self, inputs):
        return self.norm(inputs)


def test_wherever_the_layer_is():
    steps = X.reshape(6, 5, 4)
    nested = keras.Sequential([keras.Input((4,)), norm(trainable=False)], name="nested")
    inputs = keras.Input((None, 4))
    wrapped = keras.Model(inputs, kl.TimeDistributed(nested)(inputs))
    recalibrate_batch_norm(wrapped, steps, batch_size=4)
    assert_statistics(nested.layers[-1], X)
    subclassed = Subclassed()
    subclassed(X)
    for data in (X, [X], X.tolist(), [X.tolist()], iter([[X]])):
        recalibrate_batch_norm(subclassed, np.ones((3, 4)))
        recalibrate_batch_norm(subclassed, data)
        assert_statistics(subclassed.norm, X)
    half = keras.Sequential([keras.Input((4,)), norm(dtype="mixed_bfloat16")])  # its inputs are, its statistics not
    recalibrate_batch_norm(half, X)
    assert_statistics(half.layers[-1], numpy(keras.ops.cast(X, "bfloat16")))
    first = keras.Sequential([keras.Input((5, 4)), norm(axis=1)])
    recalibrate_batch_norm(first, steps, batch_size=2)
    assert_statistics(first.layers[-1], steps, (0, 2))
    twice = norm()
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    shared = keras.Model({"a": a, "b": b}, [twice(a), twice(b)])
    recalibrate_batch_norm(shared, {"b": X + 1, "a": X}, batch_size=11)
    assert_statistics(twice, np.concatenate([X, X + 1]))


def test_the_first_batch_does_not_fix_the_size_of_others():
    """Keras makes it a part of the input's shape, for Sequential models without `keras.Input`."""
    model = keras.Sequential([norm(), kl.Dense(2)])
    model(X[:7])
    assert model.inputs[0].shape[0] == 7
    recalibrate_batch_norm(model, X)
    assert_statistics(model.layers[0], X)


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
def test_data_is_as_for_predict(names):
    """Keras goes by the keys of a dict of inputs, not by the names of the inputs."""
    inputs = {key: keras.Input((4,), name=name) for key, name in zip("ab", names, strict=True)}
    first, second = norm("first"), norm("second")
    with warnings.catch_warnings():  # that names and keys differ
        warnings.simplefilter("ignore")
        model = keras.Model(inputs, [first(inputs["a"]), second(inputs["b"])])
    recalibrate_batch_norm(model, iter([({"b": X + 1, "a": X.tolist()}, np.zeros(30))]))
    assert_statistics(first, X)
    assert_statistics(second, X + 1)


def test_masked_entries_do_not_count():
    steps = np.pad(X, ((0, 6), (0, 0))).reshape(6, 6, 4)  # the last sequence is behind the mask
    steps[1, 3:] = 0
    model = keras.Sequential([keras.Input((6, 4)), kl.Masking(), norm()])
    recalibrate_batch_norm(model, steps, batch_size=1)
    assert_statistics(model.layers[-1], steps[np.any(steps != 0, axis=-1)])


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return X[10 * index : 10 * index + 10], np.zeros(10)


class Endless(Batches):
    num_batches = None


@pytest.mark.tensorflow_only
def test_a_dataset_that_repeats_is_refused():
    import tensorflow as tf

    data = tf.data.Dataset.from_tensor_slices(X).batch(10)
    model = keras.Sequential([keras.Input((4,)), norm()])
    with pytest.raises(ValueError, match="`data` must be finite"):
        recalibrate_batch_norm(model, data.repeat())
    recalibrate_batch_norm(model, data.repeat().take(3))
    assert_statistics(model.layers[-1], X)


@pytest.mark.parametrize("data", ["dataset", "generator", "inputs only", "list of pairs", "as PyTorch's loader"])
def test_batches_of_a_dataset(data):
    model = keras.Sequential([keras.Input((4,)), norm(renorm=data == "dataset")])
    pairs = [Batches()[i] for i in range(3)]
    batches = {"dataset": Batches(), "generator": iter(pairs), "inputs only": iter([X[:9], X[9:]])}
    batches |= {"list of pairs": pairs, "as PyTorch's loader": map(list, pairs)}
    recalibrate_batch_norm(model, batches[data])
    assert_statistics(model.layers[-1], X)
    if data == "dataset":
        layer = model.layers[-1]
        for deviation in (layer.moving_stddev, layer.renorm_stddev):
            np.testing.assert_allclose(numpy(deviation) ** 2, X.var(axis=0) + layer.epsilon, rtol=1e-4)
        np.testing.assert_allclose(numpy(layer.renorm_mean), X.mean(axis=0), rtol=1e-4, atol=1e-5)


class Two(keras.Model):
    """A subclassed model of two inputs."""

    def __init__(self):
        super().__init__()
        self.first, self.second = norm("first"), norm("second")

    def call(self, inputs, training=None):
        first, second = inputs.values() if isinstance(inputs, dict) else inputs
        return self.first(first, training=training) + self.second(second, training=training)


class Loader:
    """Batches as PyTorch's `DataLoader` gives them: lists."""

    collate_fn = None

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


def loader(*arrays):
    if keras.backend.backend() != "torch":
        return Loader([[array[begin : begin + 10] for array in arrays] for begin in (0, 10, 20)])
    import torch

    data = torch.utils.data.TensorDataset(*map(torch.tensor, arrays))
    return torch.utils.data.DataLoader(data, batch_size=10)


@pytest.mark.parametrize("of", [list, tuple])
def test_a_loader_without_labels_has_all_inputs(of):
    """Lists are `(x, y)` only if they are longer than the inputs of the model, of whatever class it is."""
    two, one = Two(), keras.Sequential([norm()])
    two(of([X[:2], X[:2]]))
    recalibrate_batch_norm(two, loader(X, X + 1))
    assert_statistics(two.first, X)
    assert_statistics(two.second, X + 1)
    one(X[:2])
    recalibrate_batch_norm(one, loader(X, np.zeros(30)))
    assert_statistics(one.layers[-1], X)
    recalibrate_batch_norm(two, Loader([[[X, X + 2], np.zeros(30)]]))
    assert_statistics(two.second, X + 2)


def test_a_tuple_is_data_of_a_model_whose_inputs_are_one():
    first, second = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    model = keras.Model((first, second), norm("first")(first) + norm("second")(second))
    for each in (model, two := Two()):
        each((X[:2], X[:2]))
        recalibrate_batch_norm(each, (X, X + 1))
    for layer, expected in zip([*model.layers[2:4], two.first, two.second], [X, X + 1] * 2, strict=True):
        assert_statistics(layer, expected)
    nested = keras.Model([(first, second)], norm("sum")(first + second))
    recalibrate_batch_norm(nested, [(X, X + 1)])
    assert_statistics(nested.layers[-1], 2 * X + 1)


def test_bad_arguments_leave_the_model_as_it_was():
    model = keras.Sequential([keras.Input((4,)), norm(), kl.Dense(2)])
    bad = X.copy()
    bad[29, 0] = np.inf
    cases = {
        "`data` must have samples": X[:0],
        "`data` must give finite inputs of layer 'norm'": bad,
        "`data` must be an array for input": [X, X[:3]],
        "`data` must be an array, a list or dict of arrays, or an iterable of batches of these. Received: int 3": 3,
        "`data` must be arrays: read the file, with numpy.load for example. Received: 'X'": "X",
        "`data` must be inputs only: an array, or a list or dict of one for each of": (X, np.zeros(30)),
        "`data` must be finite": Endless(),
        "`data` must have shape (number, 4) for input": X[:, :3],
    }
    for message, data in cases.items():
        with pytest.raises(ValueError, match=re.escape(message)):
            recalibrate_batch_norm(model, data, batch_size=10)
        for found, start in zip(statistics(model.layers[0]), (1, 1), strict=True):
            np.testing.assert_array_equal(found, start)
        assert "call" not in vars(model.layers[0])
    for empty in (iter([]), []):
        with pytest.raises(ValueError, match="`data` must have samples"):
            recalibrate_batch_norm(model, empty)
    with pytest.raises(ValueError, match=re.escape("Received: shape (4,) of one sample, without a batch")):
        recalibrate_batch_norm(model, X[0])
    two = [keras.Input((4,)), keras.Input((4,))]
    with pytest.raises(ValueError, match="`data` must be as many for each input"):
        recalibrate_batch_norm(keras.Model(two, norm()(two[0] + two[1])), [X, X[:3]])
    with pytest.raises(ValueError, match="`batch_size`"):
        recalibrate_batch_norm(model, X, batch_size=0)
    with pytest.raises(ValueError, match="`model` must be built and have batch normalization.*with none"):
        recalibrate_batch_norm(keras.Sequential([keras.Input((4,)), kl.Dense(2)]), X)
    with pytest.raises(ValueError, match="`model` must be built.*layers that are not built"):
        recalibrate_batch_norm(keras.Sequential([norm()]), X)
    with pytest.raises(TypeError, match="`model` must be a Keras model"):
        recalibrate_batch_norm("model.keras", X)


def test_a_jackpot_starts_from_them():
    model = keras.Sequential([keras.Input((4,)), kl.Dense(40), norm(), kl.Dense(2)])
    for variable in model.layers[0].variables:
        variable.assign(np.random.default_rng(1).normal(size=variable.shape))
    jackpot = to_jackpot(model, 0.5, kernel_quantizer="scaled_sign", data=X)
    assert_statistics(jackpot.layers[1], X @ numpy(jackpot.layers[0].kernel) + numpy(jackpot.layers[0].bias))
    np.testing.assert_array_equal(numpy(model.layers[1].moving_mean), 1)
    plain = keras.Sequential([keras.Input((4,)), model.layers[0], model.layers[2]])
    assert to_jackpot(plain, 0.5, data=X)(X).shape == (30, 2)  # nothing to estimate
