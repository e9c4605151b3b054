"""A ticket is data: nothing in it is run or imported, and only what is on the list is made."""

import copy
import json
import subprocess
import sys

import keras
import pytest

from keras_mpt.tickets import TicketError, load_ticket, restore, save_ticket
from support.ticket_files import opened, sealed, tiny

pytestmark = pytest.mark.slow_with("jax", "torch")

RAN = []  # what should never run adds to it


@keras.saving.register_keras_serializable(package="test_safety")
def danger(*args, **kwargs):
    RAN.append("danger")
    return args[0] if args else None


@keras.saving.register_keras_serializable(package="test_safety")
class Danger(keras.layers.Layer):
    def __init__(self, **kwargs):
        RAN.append("Danger")
        super().__init__(**kwargs)

    @classmethod
    def from_config(cls, config):
        RAN.append("from_config")
        return cls()

    def __call__(self, *args, **kwargs):
        RAN.append("call")
        return args[0]


@pytest.fixture(autouse=True)
def nothing_ran():
    RAN.clear()


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    file = tmp_path_factory.mktemp("tickets") / "tiny.mpt"
    save_ticket(tiny(), file)
    return file.read_bytes()


def described(module, class_name, config=None, registered_name=None, **more):
    parts = {"module": module, "class_name": class_name, "config": config or {}, "registered_name": registered_name}
    return {**parts, **more}


def keras_layer(class_name, **config):
    return described("keras.layers", class_name, config)


CODE = "import sys; sys.modules['test_ticket_safety'].RAN.append('code')"
DENSE = keras_layer("Dense", units=4)
LAMBDA = {"class_name": "__lambda__", "config": {"value": "4wEAAAA=", "defaults": None, "closure": None}}
DANGEROUS = described(None, "Danger", {}, "test_safety>Danger")

BAD = {  # objects that no ticket may hold, wherever they are
    "Lambda": keras_layer("Lambda", function=LAMBDA),
    "Lambda by its module": described("keras.src.layers.core.lambda_layer", "Lambda", {"function": LAMBDA}),
    "lambda": LAMBDA,
    "lambda as an object": described("builtins", "__lambda__", {"value": "4wEAAAA="}),
    "eval": described("builtins", "function", "eval", "function"),
    "exec as a class": described("builtins", "exec", {"source": CODE}),
    "os.system": described("os", "function", "system", "function"),
    "os.system as a class": described("os", "system", {"command": "true"}, "system"),
    "subprocess": described("subprocess", "Popen", {"args": ["true"]}, "Popen"),
    "a module of Keras": described("keras.src.utils.python_utils", "function", "func_load", "func_load"),
    "a function of Keras": described("keras.activations", "function", "relu", "relu"),
    "get_file": described("keras.utils", "get_file", {"origin": "file:///etc/passwd"}),
    "load_model": described("keras.models", "load_model", {"filepath": "model.keras"}),
    "Model": described("keras", "Model", {}),
    "TFSMLayer": keras_layer("TFSMLayer", filepath="saved"),
    "TorchModuleWrapper": keras_layer("TorchModuleWrapper", module="AAAA"),
    "JaxLayer": keras_layer("JaxLayer", call_fn="eval"),
    "FlaxLayer": keras_layer("FlaxLayer", module="x"),
    "TextVectorization": keras_layer("TextVectorization", vocabulary="/etc/passwd"),
    "StringLookup": keras_layer("StringLookup", vocabulary="/etc/passwd"),
    "IntegerLookup": keras_layer("IntegerLookup", vocabulary="/etc/passwd"),
    "typespec": {
        "class_name": "__typespec__",
        "spec_name": "system",
        "module": "os",
        "config": [],
        "registered_name": "",
    },
    "tensor": {"class_name": "__tensor__", "config": {"value": [1.0], "dtype": "float32"}},
    "array": {"class_name": "__numpy__", "config": {"value": [1.0], "dtype": "object"}},
    "bytes": {"class_name": "__bytes__", "config": {"value": "x"}},
    "registered class": DANGEROUS,
    "registered class by a module of Keras": described("keras.layers", "Dense", {"units": 1}, "test_safety>Danger"),
    "registered class by our name": described("keras_mpt", "MPTDense", {}, "test_safety>Danger"),
    "registered class by its class": described("keras_mpt", "Danger", {}, "keras_mpt>MPTDense"),
    "registered function": described("test_ticket_safety", "function", "danger", "test_safety>danger"),
    "registered function as a class": described(None, "danger", {}, "test_safety>danger"),
    "no module": {"class_name": "Dense", "config": {"units": 4}},
    "no module, registered": {"class_name": "test_safety>Danger", "config": {}},
    "no name of a class": {"module": "keras.layers", "config": {"units": 4}, "registered_name": "test_safety>Danger"},
    "a list as a name": described("keras.layers", ["Dense"], {"units": 4}),
    "more keys": {**DENSE, "compile_config": {"loss": "mse"}},
    "shared object": {**DENSE, "shared_object_id": 1},
    "path instead of a module": described("../keras/layers", "Dense", {"units": 4}),
    "module below": described("keras.layers.core", "Dense", {"units": 4}),
    "larq": described("larq.quantizers", "SteSign", {}),
    "larq without a class": {"module": "larq.quantizers", "config": {}},
    "by its place": described("antigravity", "Layer", {}),
}


def with_layer(model, bad):
    layers = model["config"]["layers"]
    layers[2] = {**bad, "name": layers[2]["name"], "inbound_nodes": layers[2]["inbound_nodes"]}


def with_layer_as_it_is(model, bad):
    model["config"]["layers"][2] = bad


def wrapped(class_name, key):
    def put(model, bad):
        with_layer(model, keras_layer(class_name, **{key: bad}))

    return put


def argument(name):
    def put(model, bad):
        config = model["config"]["layers"][1]["config"]
        assert name in config
        config[name] = bad

    return put


def sequential(model, bad):
    model.update(described("keras", "Sequential", {"name": "bad", "layers": [bad]}))


def as_model(model, bad):
    model.clear()
    model.update(bad)


def call_argument(model, bad):
    model["config"]["layers"][2]["inbound_nodes"][0]["kwargs"]["training"] = [bad]


def deep(model, bad):
    model["config"]["layers"][2]["config"]["nowhere"] = [[{"a": [{"b": bad}]}]]


PLACES = {
    "layer": with_layer,
    "bare layer": with_layer_as_it_is,
    "the model": as_model,
    "in a Sequential model": sequential,
    "TimeDistributed": wrapped("TimeDistributed", "layer"),
    "Bidirectional": wrapped("Bidirectional", "layer"),
    "RNN": wrapped("RNN", "cell"),
    "activation": wrapped("Activation", "activation"),
    "call argument": call_argument,
    "deep": deep,
}
ARGUMENTS = ("activation", "kernel_initializer", "bias_initializer", "bias_regularizer", "bias_constraint", "dtype")
ARGUMENTS += ("mask", "kernel_quantizer", "input_quantizer", "scores_initializer", "scores_regularizer", "seed")
PLACES |= {name: argument(name) for name in ARGUMENTS}


@pytest.mark.parametrize("place", PLACES)
def test_what_is_not_on_the_list_is_refused_before_anything_is_made(place, content, tmp_path, monkeypatch):
    original, blobs = opened(content)
    file, imported, made = tmp_path / "bad.mpt", set(sys.modules), []
    monkeypatch.setattr(keras.saving, "deserialize_keras_object", lambda config, **_: made.append(config))
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **kwargs: RAN.append("Popen"))
    for name, bad in BAD.items():
        header = copy.deepcopy(original)
        PLACES[place](header["model"], copy.deepcopy(bad))
        file.write_bytes(sealed(header, blobs))
        with pytest.raises(TicketError, match="bad.mpt.*A ticket holds layers of keras_mpt and ordinary ones of Keras"):
            load_ticket(file)
        assert RAN == [] and made == [], name
    assert set(sys.modules) - imported == set()


@pytest.mark.parametrize("name", ["test_safety>danger", "test_safety>Danger"])
@pytest.mark.parametrize("place", [*ARGUMENTS, "layer", "TimeDistributed"])
def test_names_of_registered_objects_are_refused(place, name, content, tmp_path):
    """Keras takes a name where it expects an object."""
    header, blobs = opened(content)
    PLACES[place](header["model"], {"x": name} if place == "layer" else name)
    (tmp_path / "bad.mpt").write_bytes(sealed(header, blobs))
    with pytest.raises(TicketError, match="bad.mpt"):
        load_ticket(tmp_path / "bad.mpt")
    assert RAN == []


def test_keras_would_have_run_these(content):
    """The sentinels work: what the tests above refuse does run where nobody refuses it."""
    keras.initializers.get("test_safety>danger")((2, 2))
    keras.saving.deserialize_keras_object(copy.deepcopy(DANGEROUS))
    assert RAN[0] == "danger" and "Danger" in RAN


def test_custom_objects_allow_these_classes_only(content, tmp_path):
    header, blobs = opened(content)
    file = tmp_path / "bad.mpt"
    for bad in (
        "Lambda",
        "registered function",
        "registered class by our name",
        "registered class by a module of Keras",
    ):
        changed = copy.deepcopy(header)
        with_layer(changed["model"], copy.deepcopy(BAD[bad]))
        file.write_bytes(sealed(changed, blobs))
        with pytest.raises(TicketError, match="A ticket holds"):
            load_ticket(file, custom_objects=[Danger])
    assert RAN == []


def test_other_data_in_place_of_a_model(content, tmp_path):
    original, blobs = opened(content)
    layer = original["model"]["config"]["layers"][1]
    bare = {key: value for key, value in layer.items() if key not in ("inbound_nodes", "name")}
    policy = described("keras", "DTypePolicy", {"name": "float32"})
    empty = described("keras", "Sequential", {"name": "empty", "layers": []})
    for model in (None, 1, "relu", [], {}, {"a": 1}, bare, policy, empty, [original["model"]]):
        for layers in (original["layers"], [{**original["layers"][0], "path": ""}], []):
            header = json.loads(json.dumps({**original, "model": model, "layers": layers}))
            (tmp_path / "bad.mpt").write_bytes(sealed(header, blobs))
            with pytest.raises(TicketError, match="bad.mpt"):
                load_ticket(tmp_path / "bad.mpt")


def test_restore_makes_nothing_of_a_file(content, tmp_path):
    header, blobs = opened(content)
    header["model"] = DANGEROUS
    (tmp_path / "bad.mpt").write_bytes(sealed(header, blobs))
    restore(tiny(), tmp_path / "bad.mpt")
    assert RAN == []


def test_a_path_in_a_file_is_not_opened(content, tmp_path):
    header, blobs = opened(content)
    header["layers"][0]["kernel"]["mask"]["blob"] = "/etc/passwd"
    (tmp_path / "bad.mpt").write_bytes(sealed(header, blobs))
    paths, watching = [], True
    sys.addaudithook(lambda event, args: paths.append(str(args[0])) if watching and event == "open" else None)
    with pytest.raises(TicketError, match="bad.mpt: layer 'first'"):
        load_ticket(tmp_path / "bad.mpt")
    watching = False  # a hook stays as long as the process
    assert str(tmp_path / "bad.mpt") in paths and "/etc/passwd" not in paths
