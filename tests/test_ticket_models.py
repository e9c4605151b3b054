"""Models that tickets hold: layers inside layers, operations, constants, functions; under any of Keras' settings."""

import copy
import pickle
import threading

import keras
import numpy as np
import pytest

import keras_mpt
from keras_mpt.layers import MPTDense
from keras_mpt.models import to_mpt
from keras_mpt.tickets import TicketError, load_ticket, restore, save_ticket
from support.ticket_files import X, assert_equal_models, opened, outputs, sealed, tiny

pytestmark = pytest.mark.slow_with("jax", "torch")

ops = keras.ops


def attention(layer, dropout=0.1):
    inputs = keras.Input((4, 6))
    x = keras.layers.Dense(6)(inputs)
    x = x + layer(dropout=dropout)(x, x)
    x = x + layer(dropout=dropout)(x, x)
    return keras.Model(inputs, keras.layers.Dense(2)(x))


def multi_head(**kwargs):
    return keras.layers.MultiHeadAttention(2, 3, **kwargs)


def grouped(**kwargs):
    return keras.layers.GroupQueryAttention(3, 2, 1, **kwargs)


@pytest.mark.filterwarnings("ignore:These layers have no MPT twin")
@pytest.mark.parametrize("layer", [multi_head, grouped])
def test_layers_that_keras_numbers_anew_are_found_by_their_place(layer, tmp_path):
    model, file, x = (
        to_mpt(attention(layer), seed=0),
        tmp_path / "a.mpt",
        np.random.default_rng(0).normal(size=(3, 4, 6)),
    )
    ticket = save_ticket(model, file)
    assert any("dropout" in path for path in ticket.layers)
    attention(layer)  # takes the next numbers
    loaded = load_ticket(file)
    np.testing.assert_array_equal(outputs(loaded, x)[0], outputs(model, x)[0])
    assert list(save_ticket(loaded, tmp_path / "b.mpt").layers) == list(ticket.layers)
    other = keras.models.clone_model(model)
    restore(other, file)
    np.testing.assert_array_equal(outputs(other, x)[0], outputs(model, x)[0])


@pytest.mark.filterwarnings("ignore:These layers", "ignore:The kernels of these layers")
def test_a_jackpot_of_attention_with_and_without_its_base(tmp_path):
    base = attention(multi_head)
    jackpot, x = keras_mpt.models.to_jackpot(base, sparsity=0.5), np.random.default_rng(0).normal(size=(3, 4, 6))
    for given in (base, None):
        save_ticket(jackpot, tmp_path / "a.mpt", base=given)
        loaded = load_ticket(tmp_path / "a.mpt", base=given)
        np.testing.assert_array_equal(outputs(loaded, x)[0], outputs(jackpot, x)[0])


@pytest.mark.filterwarnings("ignore:These layers have no MPT twin")
def test_places_are_not_guessed(tmp_path):
    """Other names, or another number of layers inside, are refused."""
    save_ticket(to_mpt(attention(multi_head), seed=0), tmp_path / "a.mpt")
    content = (tmp_path / "a.mpt").read_bytes()
    header, blobs = opened(content)
    names = [entry["path"] for entry in header["layers"]]
    dropouts = [i for i, name in enumerate(names) if "dropout" in name]
    assert len(dropouts) == 2
    changed = copy.deepcopy(header)
    entry = changed["layers"][dropouts[0]]
    blobs = {**blobs, entry["path"].replace("dropout", "other") + "/variables": blobs[f"{entry['path']}/variables"]}
    entry["path"] = entry["path"].replace("dropout", "other")
    (tmp_path / "a.mpt").write_bytes(sealed(changed, blobs))
    with pytest.raises(TicketError, match="the file has no layer '.*dropout"):
        load_ticket(tmp_path / "a.mpt")


def test_errors_of_saving_name_the_file_of_the_user(tmp_path, monkeypatch):
    def failing(*args):
        raise ValueError("nothing fits")

    model = tiny()
    keras.distribution.set_distribution("of the user")
    monkeypatch.setattr(keras_mpt.tickets.saving, "check_shapes", failing)
    with pytest.raises(TicketError, match=r"/a\.mpt: the model cannot be made: nothing fits$") as caught:
        save_ticket(model, tmp_path / "a.mpt")
    left = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    assert left == "of the user" and "unfinished" not in str(caught.value)


def images(x):
    return ops.reshape(x, (-1, 4, 4, 1))


OPERATIONS = {
    "ExtractPatches": lambda x: ops.image.extract_patches(images(x), 2),
    "Erf": ops.erf,
    "Log1p": lambda x: ops.log1p(ops.abs(x)),
    "Norm": lambda x: ops.norm(x, axis=-1),
    "Rsqrt": lambda x: ops.rsqrt(ops.abs(x) + 1),
    "Tensordot": lambda x: ops.tensordot(x, x, axes=[[1], [1]]),
    "Cumsum": lambda x: ops.cumsum(x, axis=-1),
    "Argmax": lambda x: ops.argmax(x, axis=-1),
    "Resize": lambda x: ops.image.resize(images(x), (3, 5)),
    "FloorDivide": lambda x: ops.floor_divide(x, 0.3),
    "Roll": lambda x: ops.roll(x, 1, axis=-1),
    "OneHot": lambda x: ops.one_hot(ops.argmax(x, axis=-1), 16),
    "TopK": lambda x: ops.top_k(x, 2)[0],
    "Unstack": lambda x: ops.unstack(images(x), axis=1)[1],
    "Sort": ops.sort,
    "Take": lambda x: ops.take(x, [0, 3], axis=1),
    "Logsumexp": lambda x: ops.logsumexp(x, axis=-1),
    "Conv": lambda x: ops.conv(images(x), np.ones((2, 2, 1, 3), "float32") / 4),
    "Softmax": lambda x: ops.softmax(x * np.linspace(-1, 1, 16, dtype="float32")),
    "Matmul": lambda x: ops.matmul(x, ops.convert_to_tensor(np.eye(16, 5, dtype="float32"))),
    "Where": lambda x: ops.where(x > np.zeros((1, 16), "float32"), x, np.full((1, 16), 7, "int32")),
    "Linspace": lambda x: ops.linspace(x, 2 * x, 3, axis=-1),
}


def test_operations_and_constants(tmp_path):
    inputs = keras.Input((3,))
    x = ops.tanh(MPTDense(16, seed=1)(inputs))
    model = keras.Model(inputs, [operation(x) for operation in OPERATIONS.values()])
    save_ticket(model, tmp_path / "a.mpt")
    used = {type(op).__name__ for op in model.operations}
    assert set(OPERATIONS) <= used
    for name, wanted, y in zip(OPERATIONS, outputs(model, X), outputs(load_ticket(tmp_path / "a.mpt"), X), strict=True):
        np.testing.assert_array_equal(y, wanted, err_msg=name)


CONSTANTS = [{"value": [1.0], "dtype": "object"}, {"value": ["x"], "dtype": "float32"}, {"value": [1.0]}, "x", None]
CONSTANTS += [{"value": {"class_name": "x"}, "dtype": "float32"}, {"value": [[1.0], [1.0, 2.0]], "dtype": "float32"}]
CONSTANTS += [{"value": [1.0], "dtype": "float32", "more": 1}, {"value": [1.0], "dtype": "|V8"}]


@pytest.mark.parametrize("constant", CONSTANTS, ids=str)
def test_constants_are_arrays_of_numbers(constant, tmp_path):
    inputs = keras.Input((3,))
    save_ticket(keras.Model(inputs, MPTDense(2, seed=1)(inputs) - np.ones(2, "float32")), tmp_path / "a.mpt")
    header, blobs = opened((tmp_path / "a.mpt").read_bytes())
    [node] = header["model"]["config"]["layers"][-1]["inbound_nodes"]
    assert node["args"][1]["class_name"] == "__numpy__"
    node["args"][1]["config"] = constant
    (tmp_path / "a.mpt").write_bytes(sealed(header, blobs))
    with pytest.raises(TicketError, match="a.mpt"):
        load_ticket(tmp_path / "a.mpt")


def test_more_layers_of_keras(tmp_path):
    inputs = keras.Input((5, 6, 3))
    x = keras.layers.ConvLSTM1D(4, 3)(inputs)
    x = keras.layers.Flatten()(x)
    x = keras.layers.SpectralNormalization(keras.layers.Dense(3))(x)
    model, x = keras.Model(inputs, MPTDense(2, seed=1)(x)), np.random.default_rng(0).normal(size=(2, 5, 6, 3))
    save_ticket(model, tmp_path / "a.mpt")
    np.testing.assert_array_equal(outputs(load_ticket(tmp_path / "a.mpt"), x)[0], outputs(model, x)[0])


@keras.saving.register_keras_serializable(package="test_ticket_models")
def doubled_tanh(x):
    return 2 * ops.tanh(x)


def unregistered(x):
    return x + 1


class Unregistered(keras.layers.Layer):
    def call(self, x):
        return x + 1


def test_functions_as_activations(tmp_path):
    inputs, file = keras.Input((3,)), tmp_path / "a.mpt"
    x = MPTDense(4, seed=1, activation=doubled_tanh)(inputs)
    model = keras.Model(inputs, keras.layers.Activation(doubled_tanh)(x))
    with pytest.raises(ValueError, match="custom_objects.*Received: test_ticket_models>doubled_tanh"):
        save_ticket(model, file)
    for given in ([doubled_tanh], {"any": doubled_tanh}):
        save_ticket(model, file, custom_objects=given)
        assert_equal_models(model, load_ticket(file, custom_objects=given), X)
    with pytest.raises(TicketError, match="a.mpt.*custom_objects.*test_ticket_models>doubled_tanh"):
        load_ticket(file)
    with pytest.raises(TicketError, match="a.mpt.*custom_objects.*test_ticket_models>doubled_tanh"):
        load_ticket(file, custom_objects=[Inner])


@pytest.mark.parametrize("what", [unregistered, Unregistered])
def test_what_is_not_registered_is_told_how(what, tmp_path):
    inputs = keras.Input((3,))
    layer = Unregistered() if what is Unregistered else keras.layers.Activation(unregistered)
    model = keras.Model(inputs, layer(MPTDense(4, seed=1)(inputs)))
    message = r"`custom_objects` must be registered.*@keras.saving.register_keras_serializable\(package="
    with pytest.raises(ValueError, match=message):
        save_ticket(model, tmp_path / "a.mpt", custom_objects=[what])
    with pytest.raises(ValueError, match="must be registered with `@keras.saving.register_keras_serializable"):
        save_ticket(model, tmp_path / "a.mpt")


@keras.saving.register_keras_serializable(package="test_ticket_models")
class Inner(keras.layers.Layer):
    """Layers inside that no config describes: they are made with what Keras' settings are."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.pool, self.dense = keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2)

    def build(self, shape):
        self.dense.build((None, shape[-1]))

    def call(self, x):
        return self.dense(self.pool(x))


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_settings_of_keras_change_nothing(policy, keras_settings, tmp_path):
    keras.config.set_dtype_policy(policy)
    inputs = keras.Input((6, 6, 3))
    x = keras_mpt.layers.MPTConv2D(3, 2, seed=1)(inputs)
    x = ops.tanh(ops.max_pool(x, 2))
    model, file = keras.Model(inputs, Inner()(x)), tmp_path / "a.mpt"
    x = np.random.default_rng(0).normal(size=(2, 6, 6, 3)).astype("float32")
    save_ticket(model, file, custom_objects=[Inner])
    wanted = outputs(model, x)[0]
    keras.config.set_image_data_format("channels_first")
    keras.config.set_dtype_policy("mixed_float16")
    loaded = load_ticket(file, custom_objects=[Inner])
    assert keras.config.image_data_format() == "channels_first" and keras.config.dtype_policy().name == "mixed_float16"
    assert loaded.layers[-1].dense.compute_dtype == model.layers[-1].dense.compute_dtype
    np.testing.assert_array_equal(outputs(loaded, x)[0], wanted)


def test_another_float_type_is_refused_where_it_would_matter(keras_settings, tmp_path):
    inputs = keras.Input((3,))
    plain = keras.Model(inputs, MPTDense(2, seed=1)(inputs))
    x = MPTDense(2, seed=1)(inputs)
    counted = keras.Model(inputs, ops.argmax(x, axis=-1) / 2)  # of integers: of Keras' float type
    for name, model in (("plain", plain), ("counted", counted)):
        save_ticket(model, tmp_path / name)
    keras.config.set_floatx("float16")
    np.testing.assert_array_equal(outputs(load_ticket(tmp_path / "plain"), X)[0], outputs(plain, X)[0])
    with pytest.raises(TicketError, match=r"computes in float32.*keras.config.set_floatx\('float32'\)"):
        load_ticket(tmp_path / "counted")


def test_a_ticket_pickles_and_copies(tmp_path):
    ticket = save_ticket(tiny(), tmp_path / "a.mpt")
    for other in (pickle.loads(pickle.dumps(ticket)), copy.deepcopy(ticket), copy.copy(ticket)):
        assert str(other) == str(ticket) and other.blobs == ticket.blobs
        assert_equal_models(load_ticket(ticket), load_ticket(other), X)


def test_saving_while_another_thread_trains(tmp_path):
    model = tiny()
    norm, first, stop = model.get_layer("norm"), model.get_layer("first"), threading.Event()

    def train():
        rng = np.random.default_rng(0)
        while not stop.is_set():
            norm.gamma.assign(rng.normal(size=4))
            first.bias.assign(rng.normal(size=4))
            first.scores.assign(rng.normal(size=(3, 4)))

    thread = threading.Thread(target=train)
    thread.start()
    try:
        for _ in range(5):
            save_ticket(model, tmp_path / "a.mpt")
            load_ticket(tmp_path / "a.mpt")
        with pytest.raises(RuntimeError, match="must not be trained while it is saved with `scores=True`"):
            for _ in range(20):
                save_ticket(model, tmp_path / "a.mpt", scores=True)
    finally:
        stop.set()
        thread.join()


WRONG = {
    "path": {"path": 3},
    "bytes": {"path": b"a.mpt"},
    "scores": {"scores": "no"},
    "dtype": {"dtype": "float17"},
    "provenance": {"provenance": [1, 2]},
    "provenance: a large integer": {"provenance": {"n": 2**64}},
    "provenance: equal keys": {"provenance": {1: "a", "1": "b"}},
    "base": {"base": "file.keras"},
    "custom_objects": {"custom_objects": [3]},
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_are_named(case, tmp_path):
    argument = case.split(":")[0].replace("bytes", "path")
    with pytest.raises((ValueError, TypeError), match=f"`{argument}` must be .*Received: {argument}="):
        save_ticket(tiny(), **{"path": tmp_path / "a.mpt", **WRONG[case]})
    assert list(tmp_path.iterdir()) == []


def test_wrong_arguments_of_loading_are_named(tmp_path):
    save_ticket(tiny(), tmp_path / "a.mpt")
    with pytest.raises(TypeError, match="`path` must be a path.*Received: path=3"):
        load_ticket(3)
    for call in (
        lambda v: load_ticket(tmp_path / "a.mpt", trainable=v),
        lambda v: restore(tiny(), tmp_path / "a.mpt", trainable=v),
    ):
        with pytest.raises(ValueError, match="`trainable` must be True or False. Received: trainable='no'"):
            call("no")
    with pytest.raises(TypeError, match="`model` must be a Keras model"):
        restore(tmp_path / "a.mpt", tmp_path / "a.mpt")
