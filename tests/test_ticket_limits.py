"""Files take time and memory in proportion to their size, whatever they claim."""

import json
import subprocess
import sys
import time
import zlib

import keras
import numpy as np
import pytest

import keras_mpt
from keras_mpt.layers import MPTGRU, MPTDense
from keras_mpt.tickets import Ticket, TicketError, coding, header, kernels, load_ticket, save_ticket
from support.ticket_files import X, assert_equal_models, opened, outputs, sealed, tiny

pytestmark = pytest.mark.slow_with("jax", "torch")

ops = keras.ops


@pytest.fixture
def file(tmp_path):
    save_ticket(tiny(), tmp_path / "a.mpt")
    return tmp_path / "a.mpt"


def peak(code):
    """Return how many bytes more than before a process had at most while it ran some code."""
    begin = "import keras_mpt, resource, keras, numpy as np\nkeras.ops.ones(3)\n"
    begin += "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\nbefore = peak()\n"
    command = [sys.executable, "-W", "ignore", "-c", f"{begin}{code}\nprint(peak() - before)"]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return 1024 * int(process.stdout.split()[-1])


def refusing(file):
    call = f"keras_mpt.load_ticket({str(file)!r})"
    return f"try:\n    {call}\n    raise SystemExit('loaded')\nexcept keras_mpt.TicketError:\n    pass"


def test_sizes_are_compared_before_anything_is_read(file):
    with file.open("rb+") as opened_file:
        opened_file.truncate(3 << 30)
    begin = time.process_time()
    with pytest.raises(TicketError, match=r"a.mpt: the blobs take [\d,]+ bytes, but 3,221,\d+,\d+ follow"):
        Ticket.read(file)
    assert time.process_time() - begin < 1
    assert peak(refusing(file)) < 1 << 26


def test_a_header_that_claims_to_be_large(file):
    content = bytearray(file.read_bytes())
    content[12:16] = (2**32 - 1).to_bytes(4, "little")
    with file.open("wb") as other:
        other.write(content)
        other.truncate(5 << 30)
    with pytest.raises(TicketError, match="the header is damaged or cut off"):
        Ticket.read(file)


@pytest.mark.slow
def test_weights_of_nothing_take_little_more_than_the_model(tmp_path):
    """As many weights as the format allows for a short file: decoded in parts, one layer after the other."""
    model = keras.Sequential([keras.Input((3000,))] + [MPTDense(3000, seed=i) for i in range(5)])
    save_ticket(model, tmp_path / "a.mpt")
    content, blobs = opened((tmp_path / "a.mpt").read_bytes())
    nothing = zlib.compress(b"\1" + bytes(3000 * 3000 // 8 - 1), 9)
    for layer in content["layers"]:
        kernel = layer["kernel"]
        blobs[kernel["mask"]["blob"]] = nothing
        kernel |= {"kept": 1, "source": {"from": "nothing"}, "by": "signs", "changes": None}
        kernel["mask"] |= {"coding": "bits", "inverted": False}
        kernel["sha256"] = kernels._sha256([np.eye(1, 3000 * 3000, dtype=np.float32) * np.float32(kernel["scale"])])
    blobs["padding"] = bytes(80_000)
    (tmp_path / "b.mpt").write_bytes(sealed(content, blobs))
    assert (tmp_path / "b.mpt").stat().st_size < 100_000
    weights = 5 * 3000 * 3000
    assert peak(f"model = keras_mpt.load_ticket({str(tmp_path / 'b.mpt')!r})") < 15 * weights  # weights and scores: 8


def test_gaps_are_decoded_in_parts():
    mask = np.random.default_rng(0).random(5_000_000) < 0.3
    raw = coding.CODINGS["gaps"].pack(mask, inverted=False)
    np.testing.assert_array_equal(
        coding.decode({"coding": "gaps", "inverted": False}, zlib.compress(raw, 1), mask.size), mask
    )


def nested(depth, length=None):
    """A model inside a model, each used twice: 2 ** depth calls of a layer, described once.

    Keras makes these calls when the outermost one has inputs of known length, which those inside do not know.
    """
    inputs = keras.Input((None, 3))
    model = keras.Model(inputs, inputs + MPTDense(3, seed=1)(inputs))
    for level in range(depth):
        inputs = keras.Input((length if level == depth - 1 else None, 3))
        model = keras.Model(inputs, model(model(inputs)))
    return model


def around(model, name, length=None):
    """Return the config of a model that has another one inside and uses it twice."""
    outer = json.loads(json.dumps(keras.saving.serialize_keras_object(nested(1, length))))
    outer["config"]["name"] = name
    (inner,) = [layer for layer in outer["config"]["layers"] if layer["class_name"] == "Functional"]
    old, inner["config"] = inner["name"], None
    outer = json.loads(json.dumps(outer).replace(json.dumps(old), json.dumps(model["config"]["name"])))
    (inner,) = [layer for layer in outer["config"]["layers"] if layer["class_name"] == "Functional"]
    inner["config"] = model["config"]
    inner.pop("compile_config", None)
    outer.pop("compile_config", None)
    return outer


def test_models_inside_models_do_not_double_for_ever(tmp_path):
    x = X.reshape(1, 5, 3)
    save_ticket(nested(4, 5), tmp_path / "a.mpt")
    np.testing.assert_array_equal(outputs(load_ticket(tmp_path / "a.mpt"), x)[0], outputs(nested(4), x)[0])
    save_ticket(nested(4), tmp_path / "a.mpt")
    content, blobs = opened((tmp_path / "a.mpt").read_bytes())
    model = content["model"]
    for level in range(4, 24):
        model = around(model, f"outer{level}", 5 if level == 23 else None)
    content["model"] = model
    (tmp_path / "a.mpt").write_bytes(sealed(content, blobs))
    begin = time.process_time()
    with pytest.raises(TicketError, match="the model is much larger than its description"):
        load_ticket(tmp_path / "a.mpt")
    assert time.process_time() - begin < 60


def changed(model, file, change):
    save_ticket(model, file)
    content, blobs = opened(file.read_bytes())
    change(content["model"]["config"]["layers"])
    file.write_bytes(sealed(content, blobs))


def with_setting(class_name, argument, value):
    def change(layers):
        (layer,) = [layer for layer in layers if layer["class_name"] == class_name]
        assert argument in layer["config"]
        layer["config"][argument] = value

    return change


def after(operation):
    inputs = keras.Input((4, 4, 1))
    x = operation(inputs)
    return keras.Model(inputs, MPTDense(2, seed=1)(keras.layers.Flatten()(inputs))), keras.Model(
        inputs, [x, MPTDense(2, seed=1)(keras.layers.Flatten()(inputs))]
    )


GREEDY = {
    "Tile": (lambda x: ops.tile(x, (1, 2, 1, 1)), "repeats", [1, 2**20, 2**20, 1]),
    "OneHot": (lambda x: ops.one_hot(ops.cast(x, "int32"), 3), "num_classes", 2**40),
    "Repeat": (lambda x: ops.repeat(x, 2, axis=1), "repeats", 2**40),
    "Unstack": (lambda x: ops.unstack(ops.tile(x, (1, 2, 1, 1)), axis=1)[0], None, None),
    "Diff": (lambda x: ops.diff(x, axis=1), "n", 10**9),
    "Pad": (lambda x: ops.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0))), "pad_width", [[0, 0], [0, 2**40], [0, 0], [0, 0]]),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", GREEDY)
def test_operations_cannot_ask_for_much(case, tmp_path):
    operation, argument, value = GREEDY[case]
    change = with_setting(case, argument, value) if argument else with_setting("Tile", "repeats", [1, 2**20, 1, 1])
    changed(after(operation)[1], tmp_path / "a.mpt", change)
    begin = time.process_time()
    with pytest.raises(TicketError, match="a.mpt"):
        load_ticket(tmp_path / "a.mpt")
    assert time.process_time() - begin < 30


def test_iterations_of_a_layer_are_bounded(tmp_path):
    inputs = keras.Input((3,))
    x = keras.layers.SpectralNormalization(keras.layers.Dense(3))(inputs)
    model = keras.Model(inputs, MPTDense(2, seed=1)(x))
    changed(model, tmp_path / "a.mpt", with_setting("SpectralNormalization", "power_iterations", 10**9))
    with pytest.raises(TicketError, match="`power_iterations` of SpectralNormalization must be at most 100"):
        load_ticket(tmp_path / "a.mpt")


@pytest.mark.parametrize(
    "layer",
    [
        keras.layers.LSTM(3, stateful=True),
        keras.layers.Bidirectional(MPTGRU(3, stateful=True, seed=1)),
        keras.layers.RNN(keras.layers.GRUCell(3), stateful=True),
    ],
)
def test_states_of_a_batch_are_refused(layer, tmp_path):
    inputs = keras.Input(batch_shape=(2, 3, 4))
    model = keras.Model(inputs, MPTDense(2, seed=1)(type(layer).from_config(layer.get_config())(inputs)))
    with pytest.raises(ValueError, match="^`stateful` of [A-Z]+ must be False in a ticket"):
        save_ticket(model, tmp_path / "a.mpt")
    assert not list(tmp_path.iterdir())


def test_messages_are_short_and_plain(file):
    content, blobs = opened(file.read_bytes())
    for place in ("class", "path"):
        other = json.loads(json.dumps(content))
        other["layers"][0][place] = "\x1b[2J\n" + "x" * 4_000_000
        other["layers"][0]["kernel"]["kept"] = None
        file.write_bytes(sealed(other, blobs))
        with pytest.raises(TicketError) as caught:
            load_ticket(file)
        assert len(str(caught.value)) < 2000 and str(caught.value).isprintable()
        assert all(len(str(e)) < 10_000 for e in (caught.value.__cause__,) if e is not None)


def test_several_kernels_of_a_layer_are_version_2(file):
    """No layer has them yet: entries and blobs as the page says, in a file that version 1 refuses."""
    content, blobs = opened(file.read_bytes())
    first = content["layers"][0]
    further = json.loads(json.dumps({"name": "recurrent_kernel", "kernel": first["kernel"], "scores": None}))
    first["subnets"] = [further]
    for version in (1, 2):
        data = sealed(content, blobs, version)
        file.write_bytes(data)
        if version == 1:
            with pytest.raises(TicketError, match="version 1 of the format does not have what is in the file"):
                Ticket.read(file)
        else:
            ticket = Ticket.read(file)
            wanted = ticket.kernel("first").effective
            np.testing.assert_array_equal(ticket.kernel("first", name="recurrent_kernel").effective, wanted)
            with pytest.raises(TicketError, match="layer 'first' has no kernel 'other'"):
                ticket.kernel("first", name="other")
            assert header.version_of(list(ticket.layers.values())) == 2 and "first" in str(ticket)
    with pytest.raises(TicketError, match="the file has .* for layer 'first', the model has"):
        load_ticket(file)


def test_old_versions_are_written_where_they_do(file):
    assert file.read_bytes()[8] == 1
    assert_equal_models(tiny(), load_ticket(file), X)
    assert keras_mpt.TicketError is TicketError
