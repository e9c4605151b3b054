"""Damaged files are refused; files with wrong content and right checksums are refused or hold what they declare."""

import copy
import hashlib
import json
import random
import resource
import struct
import time
import zlib

import keras
import numpy as np
import pytest

from keras_mpt.layers import MPTDense
from keras_mpt.masks import NofM, PartiallyFrozen
from keras_mpt.tickets import Ticket, TicketError, coding, load_ticket, save_ticket
from support.layer_contract import numpy
from support.ticket_files import X, assert_as_declared, opened, outputs, seal, sealed, tiny

pytestmark = pytest.mark.slow_with("jax", "torch")


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    file = tmp_path_factory.mktemp("tickets") / "tiny.mpt"
    save_ticket(tiny(), file, scores=False, provenance={"data": "none"})
    return file.read_bytes()


@pytest.fixture(scope="module")
def content_with_scores(tmp_path_factory):
    file = tmp_path_factory.mktemp("tickets") / "tiny.mpt"
    save_ticket(tiny(), file, scores=True)
    return file.read_bytes()


@pytest.fixture(scope="module")
def content_of_rules(tmp_path_factory):
    """A file of version 2, with the masks of rules that leave less to say."""
    inputs = keras.Input((3,), name="inputs")
    x = MPTDense(8, mask=PartiallyFrozen(0.5, pruned=0.3, locked=0.2), seed=1, name="first")(inputs)
    x = MPTDense(2, mask=NofM(2, 4), seed=2, name="second")(x)
    file = tmp_path_factory.mktemp("tickets") / "rules.mpt"
    save_ticket(keras.Model(inputs, x, name="rules"), file)
    return file.read_bytes()


def assert_refused(content, file):
    file.write_bytes(content)
    with pytest.raises(TicketError, match="ticket.mpt"):
        Ticket.read(file)


def test_cut_files(content, tmp_path):
    for length in range(len(content)):
        assert_refused(content[:length], tmp_path / "ticket.mpt")
    assert_refused(content + b"\0", tmp_path / "ticket.mpt")


def damaged(content, rng):
    """Return other bytes: bits flipped, bytes changed, a range moved, doubled, left out, put in or zeroed."""
    data, n = bytearray(content), len(content)
    begin, end = sorted(rng.sample(range(n + 1), 2))
    kind = rng.randrange(8)
    if kind == 0:
        for _ in range(rng.choice([1, 1, 1, 2, 8])):
            data[rng.randrange(n)] ^= 1 << rng.randrange(8)
    elif kind == 1:
        data[rng.randrange(n)] = rng.randrange(256)
    elif kind == 2:
        data[begin:begin] = data[begin:end]
    elif kind == 3:
        del data[begin:end]
    elif kind == 4:
        at = rng.randrange(n)
        part = data[begin:end]
        del data[begin:end]
        data[at:at] = part
    elif kind == 5:
        data[begin:end] = bytes(end - begin)
    elif kind == 6:
        data[begin:begin] = rng.randbytes(rng.randrange(1, 40))
    else:
        data[: rng.randrange(64)] = rng.randbytes(rng.randrange(64))
    return bytes(data)


@pytest.mark.parametrize(("seed", "count"), [(1, 2000), pytest.param(2, 100_000, marks=pytest.mark.slow)])
def test_damaged_files(seed, count, content, tmp_path):
    rng = random.Random(seed)
    for _ in range(count):
        other = damaged(content, rng)
        if other != content:
            assert_refused(other, tmp_path / "ticket.mpt")


def test_errors_name_the_damaged_part(content, tmp_path):
    header, blobs = opened(content)
    begin = len(content) - sum(map(len, blobs.values()))
    for name, data in blobs.items():
        other = bytearray(content)
        other[begin + len(data) // 2] ^= 1
        begin += len(data)
        (tmp_path / "ticket.mpt").write_bytes(other)
        with pytest.raises(TicketError, match=f"ticket.mpt.*'{name}'"):
            Ticket.read(tmp_path / "ticket.mpt")


HOSTILE = [None, True, False, 0, 1, 2, 3, 4, -1, -(2**63), 2**31, 2**32, 2**63, 2**64, 10**9, 10**30, 0.5, -0.5, 1e300]
HOSTILE += [
    1e-320,
    "",
    "nan",
    "NaN",
    "inf",
    "../../etc/passwd",
    "\ud800",
    "first",
    "second",
    "first/mask",
    "bits",
    "gaps",
    "searched",
    "groups",
]
HOSTILE += [
    "seed",
    "base",
    "values",
    "all",
    "float64",
    "bfloat16",
    "bool",
    "relu",
    "linear",
    "int8_from_float32",
    "\x1b[2J",
]
HOSTILE += [
    [],
    {},
    [[]],
    [None],
    [0],
    [3, 4],
    [10**5, 10**5],
    [-1, -12],
    [2**40, 0],
    {"a": 1},
    "x" * 10_000,
    [1] * 5000,
]


def places(data, path=()):
    """Yield the paths to everything in JSON data."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def get(data, path):
    for key in path:
        data = data[key]
    return data


def mutated(header, blobs, rng):
    """Return a header and blobs with one to three things changed."""
    header, blobs = copy.deepcopy(header), dict(blobs)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        found = list(places(header))
        if rng.random() < 0.5:  # half of them in the layers' entries
            found = [path for path in found if path[0] == "layers"] or found
        path = rng.choice(found)
        parent, key, kind = get(header, path[:-1]), path[-1], rng.randrange(12)
        if kind < 6:
            parent[key] = copy.deepcopy(rng.choice(HOSTILE))
        elif kind == 6:
            del parent[key]
        elif kind == 7:
            parent[key] = copy.deepcopy(get(header, rng.choice(found)))
        elif kind == 8:
            if isinstance(parent, list):
                parent.insert(key, copy.deepcopy(parent[key]))
            else:
                parent[rng.choice(["extra", "seed", "config", "dtype", "trainable"])] = rng.choice(HOSTILE)
        elif kind == 9:
            value = parent[key]
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            parent[key] = value + rng.choice([-1, 1, 7]) if number else [value]
        else:
            name = rng.choice(list(blobs) or ["none"])
            data = bytearray(blobs.pop(name, b""))
            kind = rng.randrange(5)
            if kind == 0 and data:
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            elif kind == 1:
                data = data[:-1]
            elif kind == 2:
                data += b"\0"
            elif kind == 3:
                name = rng.choice([*blobs, "extra"])
            if kind != 4:
                blobs[name] = bytes(data)
        if not header.get("layers") or not header.get("model"):
            break
    return header, blobs


MASKS_OF_RULES = {
    "more frozen than there are": ("first", {"pruned": 20, "locked": 20}),
    "another number of them": ("first", {"pruned": 6}),
    "others": ("first", {"seed": 2}),
    "a large number": ("first", {"pruned": 2**63 - 1, "locked": 2**63 - 1}),
    "no way": ("first", {"of": "searched"}),
    "no ways": ("first", {"of": ["bits"]}),
    "no number": ("first", {"locked": True}),
    "all of m": ("second", {"n": 4}),
    "more than m": ("second", {"n": 5}),
    "m does not fit": ("second", {"m": 3}),
    "another stride": ("second", {"stride": 1}),
    "a large stride": ("second", {"stride": 2**62}),
    "a large group": ("second", {"m": 2**40}),
    "more": ("second", {"inverted": False}),
}


@pytest.mark.parametrize("case", MASKS_OF_RULES)
def test_masks_of_rules_are_refused(case, content_of_rules, tmp_path):
    name, changes = MASKS_OF_RULES[case]
    header, blobs = edited(content_of_rules, **{f"{name}.kernel.mask.{key}": value for key, value in changes.items()})
    (tmp_path / "ticket.mpt").write_bytes(sealed(header, blobs, 2))
    with pytest.raises(TicketError, match=f"ticket.mpt.*layer '{name}'"):
        load_ticket(tmp_path / "ticket.mpt")


def test_masks_of_rules_need_version_2(content_of_rules, tmp_path):
    assert content_of_rules[8] == 2
    (tmp_path / "ticket.mpt").write_bytes(sealed(*opened(content_of_rules), 1))
    with pytest.raises(TicketError, match="version 1 of the format does not have what is in the file"):
        Ticket.read(tmp_path / "ticket.mpt")


@pytest.mark.parametrize("raw", [b"\xd8\x00", b"\xff\x00", b"\x00\x06", b"\x00", b"\x00\x00\x00"])
def test_bytes_that_are_no_groups(raw):
    form = {"coding": "groups", "n": 2, "m": 4, "stride": 1}
    assert coding.decode(form, zlib.compress(b"\xcc\x03"), 16).reshape(4, 4).sum(axis=1).tolist() == [2] * 4
    with pytest.raises(ValueError):
        coding.decode(form, zlib.compress(raw), 16)


def bytes_in_use():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def assert_refused_or_as_declared(content, file):
    """Return whether it was loaded."""
    file.write_bytes(content)
    before, begin = bytes_in_use(), time.process_time()
    try:
        assert "Total" in str(Ticket.read(file))
        model = load_ticket(file)
    except TicketError as error:
        assert "ticket.mpt" in str(error)
        return False
    finally:
        assert bytes_in_use() - before < 1 << 30 and time.process_time() - begin < 30
    assert_as_declared(model, file)
    return True


@pytest.mark.filterwarnings("ignore")  # Keras' and numpy's, about what is in the files
@pytest.mark.parametrize(("seed", "count"), [(1, 300), pytest.param(2, 3000, marks=pytest.mark.slow)])
def test_wrong_content(seed, count, content, content_with_scores, content_of_rules, tmp_path):
    rng = random.Random(seed)
    originals = [(opened(content), 1), (opened(content_with_scores), 1), (opened(content_of_rules), 2)]
    loaded = 0
    for i in range(count):
        original, version = originals[i % 3]
        other = sealed(*mutated(*original, rng), version)
        loaded += assert_refused_or_as_declared(other, tmp_path / "ticket.mpt")
    assert 0 < loaded < 0.7 * count  # some changes matter to nobody


HEADERS = {
    "nothing": b"",
    "no JSON": b"{",
    "no UTF-8": b'{"blobs": [], "\xff": 1}',
    "NaN": b'{"blobs": [], "a": NaN}',
    "infinity": b'{"blobs": [], "a": -Infinity}',
    "a list": b"[]",
    "a string": b'"blobs"',
    "a number": b"1e5",
    "deep": b'{"blobs": [], "a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "less deep": b'{"blobs": [], "layers": [], "provenance": {}, "model": ' + b'{"a":' * 700 + b"1" + b"}" * 701,
    "many digits": b'{"blobs": [], "a": 1' + b"0" * 10_000 + b"}",
    "no blobs": b"{}",
    "blobs: a dict": b'{"blobs": {"abc": 1}}',
    "blobs: a number": b'{"blobs": 3}',
    "blobs: names": b'{"blobs": [[1, 2, "3"]]}',
    "blobs: negative": b'{"blobs": [["a", -1, ""]]}',
    "blobs: fraction": b'{"blobs": [["a", 1.0, ""]]}',
    "blobs: true": b'{"blobs": [["a", true, ""]]}',
    "blobs: too large": b'{"blobs": [["a", 100000000000000000000000, ""]]}',
    "blobs: pairs": b'{"blobs": [["a", 1]]}',
    "blobs: twice": b'{"blobs": [["a", 0, "%s"], ["a", 0, "%s"]]}' % (2 * (b"e3b0c44298fc1c149afbf4c8996fb924",)),
    "nothing else": b'{"blobs": []}',
}


@pytest.mark.parametrize("case", HEADERS)
def test_headers_that_are_none(case, tmp_path):
    (tmp_path / "ticket.mpt").write_bytes(seal(HEADERS[case], {}))
    with pytest.raises(TicketError, match="ticket.mpt"):
        load_ticket(tmp_path / "ticket.mpt")


UNREADABLE = [("created", None), ("provenance", 3), ("software", "keras"), ("layers", [3]), ("layers.0.class", None)]
UNREADABLE += [("layers.0.kernel.kept", 13), ("layers.0.kernel.shape", [3, -4]), ("layers.1.variables", None)]


@pytest.mark.parametrize(("place", "value"), UNREADABLE)
def test_what_is_read_can_be_shown(place, value, content, tmp_path):
    header, blobs = opened(content)
    *path, key = [int(part) if part.isdigit() else part for part in place.split(".")]
    for change in (lambda parent: parent.update({key: value}), lambda parent: parent.pop(key)):
        change(get(header, path))
        (tmp_path / "ticket.mpt").write_bytes(sealed(header, blobs))
        try:
            ticket = Ticket.read(tmp_path / "ticket.mpt")
        except TicketError as error:
            assert "ticket.mpt" in str(error)
        else:
            assert "Total" in str(ticket) and "Total" in ticket._repr_html_()


def test_a_header_of_zeros_cannot_take_much_memory(tmp_path):
    before = bytes_in_use()
    packer = zlib.compressobj(9)
    stored = b"".join(packer.compress(bytes(1 << 24)) for _ in range(16)) + packer.flush()
    bomb = struct.pack("<8sII", b"\x89KMPT\r\n\x1a", 1, len(stored))
    assert_refused(bomb + hashlib.sha256(bomb + stored).digest() + stored, tmp_path / "ticket.mpt")
    assert bytes_in_use() - before < 1 << 28


def test_a_large_file_of_something_else_is_not_read(tmp_path):
    before = bytes_in_use()
    with (tmp_path / "ticket.mpt").open("wb") as file:
        file.truncate(1 << 31)
    with pytest.raises(TicketError, match="ticket.mpt is not a ticket file"):
        Ticket.read(tmp_path / "ticket.mpt")
    assert bytes_in_use() - before < 1 << 28


def test_a_header_of_many_values_cannot_take_much_memory(tmp_path):
    before, begin = bytes_in_use(), time.process_time()
    lists = b"[]," * (60 * 2**20 // 3)
    assert_refused(seal(b'{"blobs": [], "a": [' + lists + b"1]}", {}), tmp_path / "ticket.mpt")
    assert bytes_in_use() - before < 1 << 29 and time.process_time() - begin < 10


@pytest.mark.parametrize("shape", [[2] * 300_000, [10**4000] * 500, [2**63]], ids=["axes", "digits", "large"])
@pytest.mark.parametrize("place", [(0, "kernel"), (1, "variables")])
def test_shapes_of_many_numbers_take_no_time(place, shape, content, tmp_path):
    header, blobs = opened(content)
    entry = header["layers"][place[0]][place[1]]
    (entry if place[1] == "kernel" else entry[0])["shape"] = shape
    begin = time.process_time()
    assert_refused(sealed(header, blobs), tmp_path / "ticket.mpt")
    assert time.process_time() - begin < 1


def edited(content, **changes):
    """Return the bytes of a file with values at dotted paths replaced, the layers' names standing for their places."""
    header, blobs = opened(content)
    names = {entry["path"]: i for i, entry in enumerate(header["layers"])}
    for path, value in changes.items():
        *path, key = [names.get(part, int(part) if part.isdigit() else part) for part in path.split(".")]
        get(header["layers"], path)[key] = value
    return header, blobs


HUGE = {
    "units": ("first", {"units": 10**9}, [3, 10**9]),
    "square": ("first", {"units": 10**5}, [10**5, 10**5]),
    "no int64": ("first", {"units": 10**30}, [3, 10**30]),
    "all of its inputs": ("second", {"units": 10**7}, [4, 10**7]),
    "unsaid": ("second", {"units": 10**9}, [4, 2]),
    "normalization": ("norm", {"axis": [1, 2**31]}, None),
}


@pytest.mark.parametrize("case", HUGE)
def test_a_short_file_cannot_take_much_memory(case, content, tmp_path):
    name, settings, shape = HUGE[case]
    header, blobs = opened(content)
    config = next(layer for layer in header["model"]["config"]["layers"] if layer["name"] == name)["config"]
    assert set(settings) <= set(config)
    config.update(settings)
    entry = next(entry for entry in header["layers"] if entry["path"] == name)
    if shape:
        entry["kernel"]["shape"] = shape
    assert not assert_refused_or_as_declared(sealed(header, blobs), tmp_path / "ticket.mpt")


def with_layer(header, layer, **settings):
    """Put a layer of Keras between the first layer and the next."""
    header = copy.deepcopy(header)
    described = keras.saving.serialize_keras_object(layer)
    described["config"].update(settings)
    layers = header["model"]["config"]["layers"]
    tensor = copy.deepcopy(layers[2]["inbound_nodes"])
    described.pop("build_config", None)
    described.update(name=layer.name, inbound_nodes=tensor)
    layers[2]["inbound_nodes"][0]["args"][0]["config"]["keras_history"][0] = layer.name
    layers.insert(2, json.loads(json.dumps(described)))
    return header


GREEDY = {
    "Dense": ({"units": 1}, {"units": 10**9}),
    "Embedding": ({"input_dim": 2, "output_dim": 4}, {"input_dim": 10**9}),
    "PReLU": ({}, {"shared_axes": [10**9]}),
    "Conv1D": ({"filters": 2, "kernel_size": 3}, {"filters": 10**5, "kernel_size": [10**5]}),
    "RepeatVector": ({"n": 2}, {"n": 10**9}),
    "Reshape": ({"target_shape": [4]}, {"target_shape": [10**5, 10**5]}),
    "SimpleRNN": ({"units": 2}, {"units": 10**6}),
    "Normalization": ({}, {}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", GREEDY)
def test_other_layers_cannot_take_much_memory(case, content, tmp_path):
    settings, greedy = GREEDY[case]
    layer = getattr(keras.layers, case)(**settings, name="greedy")
    header, blobs = opened(content)
    header = with_layer(header, layer, **greedy)
    if not greedy:  # its size is that of the inputs
        header["model"]["config"]["layers"][2]["build_config"] = {"input_shape": [None, 10**9]}
    assert not assert_refused_or_as_declared(sealed(header, blobs), tmp_path / "ticket.mpt")


def test_constants_cannot_take_much_memory(tmp_path):
    inputs = keras.Input((4, 1), name="inputs")
    x = keras.layers.Normalization(axis=1, mean=0.5, variance=4.0, name="norm")(inputs)
    x = MPTDense(2, seed=1, name="head")(keras.layers.GlobalAveragePooling1D(name="mean")(x))
    model, file = keras.Model(inputs, x), tmp_path / "ticket.mpt"
    save_ticket(model, file)
    images = np.random.default_rng(0).normal(size=(3, 4, 1)).astype(np.float32)
    np.testing.assert_array_equal(numpy(load_ticket(file)(images)), numpy(model(images)))
    header, blobs = opened(file.read_bytes())
    first, norm, *_ = header["model"]["config"]["layers"]
    first["config"]["batch_shape"] = norm["build_config"]["input_shape"] = [None, 2**28, 1]
    assert not assert_refused_or_as_declared(sealed(header, blobs), file)


@pytest.mark.filterwarnings("ignore")
def test_many_steps_take_no_time(content, tmp_path):
    """Nothing is computed, so nothing unrolled, before all is known to fit."""
    header, blobs = opened(content)
    repeat = keras.layers.RepeatVector(10**9, name="repeat")
    header = with_layer(header, keras.layers.LSTM(2, unroll=True, name="unrolled"))
    header = with_layer(header, repeat)
    layers = [layer["name"] for layer in header["model"]["config"]["layers"]]
    assert layers[:4] == ["inputs", "first", "repeat", "unrolled"]
    assert not assert_refused_or_as_declared(sealed(header, blobs), tmp_path / "ticket.mpt")


CONSISTENT = {  # what only a look at several entries shows to be wrong
    "kept": {"first.kernel.kept": 8},
    "mask of another": {"first.kernel.mask.inverted": False},
    "scale": {"first.kernel.scale": 0.5},
    "negative scale": {"first.kernel.scale": -0.8164966106414795},
    "no scale": {"first.kernel.scale": None},
    "a scale too many": {"second.kernel.scale": 0.5},
    "seed": {"first.kernel.source.seed": 5},
    "no seed": {"first.kernel.source.seed": -1},
    "initializer": {"first.kernel.source.initializer": "object"},
    "fan_in": {"second.kernel.source.fan_in": -4},
    "source": {"second.kernel.source": {"from": "nothing"}},
    "base": {"second.kernel.source": {"from": "base", "sha256": "00"}},
    "changes": {"first.kernel.changes": None},
    "by": {"first.kernel.by": "values"},
    "values": {"second.kernel.values": None},
    "over": {"second.kernel.over": "all"},
    "shape": {"first.kernel.shape": [4, 3]},
    "variable's shape": {"norm.variables.0.shape": [2, 2]},
    "variable's type": {"norm.variables.0.stored": "float64"},
    "no type": {"norm.variables.0.stored": "object"},
    "path": {"norm.path": "other"},
    "path of another": {"norm.path": "first"},
    "no kernel": {"first.kernel": None},
    "scores that are none": {"first.scores": "first/mask"},
    "scores of nothing": {"first.scores": "none"},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CONSISTENT)
def test_entries_that_do_not_fit(case, content, tmp_path):
    file = tmp_path / "ticket.mpt"
    file.write_bytes(sealed(*edited(content, **CONSISTENT[case])))
    with pytest.raises(TicketError, match="ticket.mpt"):
        load_ticket(file)


def with_scores(content, value):
    header, blobs = opened(content)
    scores = np.frombuffer(blobs["first/scores"], "<f4").copy()
    scores[np.argmax(np.abs(scores)) if np.isnan(value) else np.argmin(np.abs(scores))] = value
    return sealed(header, {**blobs, "first/scores": scores.tobytes()})


@pytest.mark.parametrize("value", [np.nan, 100.0], ids=str)
def test_scores_make_the_mask(value, content_with_scores, tmp_path):
    (tmp_path / "ticket.mpt").write_bytes(with_scores(content_with_scores, np.float32(value)))
    for trainable in (False, True):
        with pytest.raises(TicketError, match="ticket.mpt.*score.*'first'"):
            load_ticket(tmp_path / "ticket.mpt", trainable=trainable)


def test_frozen_weights_are_those_that_were_saved(content_with_scores, tmp_path):
    changed = edited(content_with_scores, **{"first.kernel.frozen_sha256": "0" * 64})
    (tmp_path / "ticket.mpt").write_bytes(sealed(*changed))
    with pytest.raises(TicketError, match="ticket.mpt.*frozen weights"):
        load_ticket(tmp_path / "ticket.mpt")


def test_weights_are_finite(content, tmp_path):
    header, blobs = opened(content)
    values = np.frombuffer(blobs["second/values"], "<f4").copy()
    values[0] = np.inf
    (tmp_path / "ticket.mpt").write_bytes(sealed(header, {**blobs, "second/values": values.tobytes()}))
    with pytest.raises(TicketError, match="layer 'second'.*not finite"):
        load_ticket(tmp_path / "ticket.mpt")


def test_a_refused_file_leaves_no_traces(content, tmp_path):
    file = tmp_path / "ticket.mpt"
    model = tiny()
    wanted = outputs(model, X)
    for changes in ({"first.kernel.seed": 1, "first.kernel.kept": 8}, {"first.kernel.shape": [4, 3]}):
        file.write_bytes(sealed(*edited(content, **changes)))
        with pytest.raises(TicketError):
            load_ticket(file)
    np.testing.assert_array_equal(outputs(model, X)[0], wanted[0])
    fresh = keras.layers.Dense(2)
    fresh.build((None, 3))
    assert np.isfinite(keras.ops.convert_to_numpy(fresh.kernel)).all()
