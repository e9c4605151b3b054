"""docs/ticket-format.md is enough to read a ticket: a reader written from that page alone reads what keras_mpt writes.

The reader, in the first half of this file, uses Python's standard library and nothing of keras_mpt. When the page and
the reader disagree, or the page leaves a question open, the page is what has to change.
"""

import copy
import datetime
import hashlib
import json
import math
import pathlib
import re
import struct
import zlib

import keras
import numpy as np
import pytest
from keras import ops

import keras_mpt
from keras_mpt.tickets import container, kernels
from keras_mpt.tickets.config import _ALLOWED
from support.ticket_files import opened, seal, sealed

pytestmark = pytest.mark.slow_with("jax", "torch")

DOCUMENT = pathlib.Path(__file__).parents[1] / "docs" / "ticket-format.md"

# --- The reader: sections of the page in brackets ---------------------------------------------------------------------

MASK_64 = 2**64 - 1
FORMATS = {"float16": "e", "float32": "f", "float64": "d", "bool": "?", "bfloat16": "H"}
FORMATS |= {"int8": "b", "int16": "h", "int32": "i", "int64": "q", "uint8": "B", "uint16": "H", "uint32": "I"}
FORMATS |= {"uint64": "Q"}
CENTRE = (2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087, -0.00125372503)
CENTRE += (-0.00417768164, 0.246640727, 1.50140941)
TAIL = (-0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773, -0.0076224613, 0.00943887047)
TAIL += (1.00167406, 2.83297682)


class Refused(Exception):
    pass


def require(condition, what):
    if not condition:
        raise Refused(what)


def read_file(content):
    """[2, 3, 12] Return (header, blobs)."""
    require(content[:8] == b"\x89KMPT\r\n\x1a", "not a ticket")
    version, size = struct.unpack_from("<II", content, 8)
    require(version in (1, 2), f"version {version}")
    require(48 + size <= len(content) and size <= 2**23 + 2**16, "header: size")
    stored, rest = content[48 : 48 + size], content[48 + size :]
    require(hashlib.sha256(content[:16] + stored).digest() == content[16:48], "header: checksum")
    header = read_json(inflate(stored, 2**23).decode("utf-8"))
    blobs = {}
    for name, length, checksum in header["blobs"]:
        require(isinstance(name, str) and name not in blobs, f"{name}: no name, or listed twice")
        require(type(length) is int and length >= 0 and is_checksum(checksum), f"{name}: size, checksum")
        blobs[name], rest = rest[:length], rest[length:]
        require(hashlib.sha256(blobs[name]).hexdigest() == checksum, f"{name}: checksum")
    require(not rest, "bytes after the blobs")
    require(datetime.datetime.fromisoformat(header["created"]).tzinfo is not None, "created")
    require(all(isinstance(value, str) for value in header["software"].values()), "software")
    require(isinstance(header["provenance"], dict) and isinstance(header["model"], dict), "provenance, model")
    types = ["float32", "float16", "bfloat16", "float64"]
    known = {"floatx": types, "dtype_policy": [*types, "mixed_float16", "mixed_bfloat16"]}
    known["image_data_format"] = ["channels_last", "channels_first"]
    require(all(header.get("settings", {}).get(key, values[0]) in values for key, values in known.items()), "settings")
    paths = [layer["path"] for layer in header["layers"]]
    require(len(set(paths)) == len(paths), "a path twice")
    weights = sum(check_layer(layer, blobs, version) for layer in header["layers"])
    require(weights <= 2**22 + 512 * len(content), "too many weights")
    return header, blobs


def read_json(text):
    """[3] Return the value of a JSON text that is not ambiguous."""

    def pairs(found):
        require(len(dict(found)) == len(found), "a key twice")
        return dict(found)

    def integer(digits):
        require(len(digits) <= 20 and abs(int(digits)) < 2**64, "an integer is too large")
        return int(digits)

    def number(digits):
        require(math.isfinite(float(digits)), "a number is too large")
        return float(digits)

    def constant(name):
        raise Refused(name)

    hooks = {"object_pairs_hook": pairs, "parse_int": integer, "parse_float": number, "parse_constant": constant}
    value = json.loads(text, **hooks)
    json.dumps(value, ensure_ascii=False).encode("utf-8")  # no half of a surrogate pair
    return value


def is_checksum(value):
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def subnets_of(layer):
    """[4] Return (kernel, scores) of each kernel of a layer."""
    first = [(layer["kernel"], layer["scores"])] if layer["kernel"] is not None else []
    return first + [(further["kernel"], further["scores"]) for further in layer.get("subnets", [])]


def check_layer(layer, blobs, version):
    """[4, 6, 7, 9, 10] Refuse an entry with a wrong field; return the number of weights."""
    require(isinstance(layer["path"], str) and isinstance(layer["class"], str), "path, class")
    require(layer["kernel"] is not None or layer["scores"] is None, "scores of nothing")
    names = [further["name"] for further in layer.get("subnets", [])]
    require(len(set(names)) == len(names) and all(isinstance(name, str) for name in names), "names")
    require(not names or version == 2 and layer["kernel"] is not None, "several kernels")
    for kernel, scores in subnets_of(layer):
        size = size_of(kernel["shape"])
        require(type(kernel["kept"]) is int and 0 <= kernel["kept"] <= size, "kept")
        for form in (kernel["mask"], kernel["changes"]):
            if form is not None or form is kernel["mask"]:
                require(form["blob"] in blobs, "mask")
                check_form(form, version)
        check_source(kernel["source"])
        whole = kernel["over"] == "all"
        require(whole or kernel["over"] == "kept", "over")
        require(is_checksum(kernel["sha256"]), "sha256")
        require(is_checksum(kernel["frozen_sha256"]) if whole else kernel["frozen_sha256"] is None, "frozen_sha256")
        require(kernel["values"] is None or len(blobs.get(kernel["values"], b"0")) % 4 == 0, "values")
        require(scores is None or whole and len(blobs.get(scores, b"")) == 4 * size, "scores")
    for variable in layer["variables"]:
        same = variable["stored"] == variable["dtype"]
        require(same or (variable["stored"], variable["dtype"]) == ("float16", "float32"), "stored")
        require(isinstance(variable["name"], str) and variable["dtype"] in FORMATS, "name, dtype")
    read_variables(layer, blobs)
    return sum(size_of(kernel["shape"]) for kernel, _ in subnets_of(layer))


FROZEN = {"pruned": (0, 2**63 - 1), "locked": (0, 2**63 - 1), "seed": (0, MASK_64), "stream": (0, MASK_64)}
GROUPS = {"n": (1, 31), "m": (2, 32), "stride": (1, 2**63 - 1)}
CODINGS = {"bits": {"inverted"}, "gaps": {"inverted"}, "groups": {*GROUPS}, "searched": {"inverted", "of", *FROZEN}}


def check_form(form, version):
    """[5, 13] Refuse a coded mask with a wrong key."""
    require(isinstance(form["coding"], str) and form["coding"] in CODINGS, "coding")
    require(set(form) == {"coding", "blob", *CODINGS[form["coding"]]}, "keys of a mask")
    require(version == 2 or form["coding"] in ("bits", "gaps"), "coding of a later version")
    require(type(form.get("inverted", True)) is bool and form.get("of", "bits") in ("bits", "gaps"), "inverted, of")
    for key, (least, most) in {**FROZEN, **GROUPS}.items():
        require(type(form.get(key, least)) is int and least <= form.get(key, least) <= most, key)


def check_source(source):
    """[7] Refuse a source with a wrong field."""
    if source["from"] != "seed":
        keys = {"nothing": {"from"}, "base": {"from", "sha256"}}.get(source["from"])
        require(set(source) == keys and (source["from"] == "nothing" or is_checksum(source["sha256"])), "source")
        return
    require(set(source) == {"from", "initializer", "config", "seed", "stream", "fan_in", "density"}, "source")
    integers = [source[key] for key in ("seed", "stream", "fan_in")]
    require(all(type(n) is int and 0 <= n < 2**64 for n in integers), "seed, stream, fan_in")
    require(source["stream"] < 2**64 - 1 and source["fan_in"] >= 1 and 0 < source["density"] <= 1, "ranges")
    ((key, value),) = source["config"].items()
    uniform = source["initializer"] == "KaimingUniform"
    require(key == ("a" if uniform else "scale_fan"), "config")
    require(type(value) in (int, float) if uniform else type(value) is bool, "config")


def inflate(stream, limit):
    """[1] Return the bytes of one zlib stream."""
    decompressor = zlib.decompressobj()
    data = decompressor.decompress(stream, limit + 1)
    require(len(data) <= limit and decompressor.eof and not decompressor.unused_data, "not one zlib stream")
    return data


def size_of(shape):
    require(all(type(n) is int and n >= 0 for n in shape), "shape")
    return math.prod(shape)


def floats(data):
    return list(struct.unpack(f"<{len(data) // 4}f", data))


def float32(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


def read_mask(form, size, blobs):
    """[5] Return a list of `size` booleans."""
    check_form(form, 2)
    stream, mask = blobs[form["blob"]], [False] * size
    if form["coding"] == "groups":
        return read_groups(stream, size, **{key: form[key] for key in GROUPS})
    if form["coding"] == "searched":
        pruned, locked = form["pruned"], form["locked"]
        require(pruned + locked <= size, "more frozen than there are")
        uniform = random_uniform(size, form["seed"], form["stream"]) if pruned + locked else [0.0] * size
        order = sorted(range(size), key=lambda i: (uniform[i], i))
        rest = {"coding": form["of"], "inverted": form["inverted"], "blob": form["blob"]}
        rest = read_mask(rest, size - pruned - locked, blobs)
        for i in order[pruned : pruned + locked]:
            mask[i] = True
        for i, bit in zip(sorted(order[pruned + locked :]), rest, strict=True):
            mask[i] = bit
        return mask
    if form["coding"] == "bits":
        data = inflate(stream, -(-size // 8))
        require(len(data) == -(-size // 8), "too few bits")
        bits = [bool(data[i // 8] >> i % 8 & 1) for i in range(8 * len(data))]
        require(not any(bits[size:]), "unused bits")
        mask = bits[:size]
    else:
        data, position = inflate(stream, size), 0
        require(data[-1:] != b"\xff", "gap without an end")
        for byte in data:
            position += byte
            if byte < 255:
                require(position < size, "gap beyond the end")
                mask[position] = True
                position += 1
    return [bit != form["inverted"] for bit in mask]


def read_groups(stream, size, n, m, stride):
    """[5] Return a list of `size` booleans, n of each m of which are true."""
    require(n < m and m * stride <= size and size % (m * stride) == 0, "groups that do not fit")
    count, patterns = size // m, math.comb(m, n)
    each, width, base = 1, 1, 256
    while patterns ** (each + 1) <= 256:
        each += 1
    if patterns > 256:
        width = next(w for w in range(2, 9) if 256**w >= patterns)
        base = next(b for b in range(2, 257) if b**width >= patterns)
    data = inflate(stream, width * -(-count // each))
    require(len(data) == width * -(-count // each), "too few groups")
    numbers = []
    for begin in range(0, len(data), width):
        require(max(data[begin : begin + width]) < base, "no digit")
        value = sum(digit * base**i for i, digit in enumerate(data[begin : begin + width]))
        for _ in range(each):
            value, number = divmod(value, patterns)
            numbers.append(number)
        require(value == 0, "no group")
    require(not any(numbers[count:]), "unused digits")
    mask = [False] * size
    for group, number in enumerate(numbers[:count]):
        first, left = group // stride * m * stride + group % stride, n
        for i in range(m - 1, -1, -1):
            if left and number >= math.comb(i, left):
                mask[first + i * stride] = True
                number -= math.comb(i, left)
                left -= 1
    return mask


def read_kernel(entry, blobs, base):
    """[6] Return (frozen, effective), the one as a list of floats, the other as bytes."""
    size, scale = size_of(entry["shape"]), entry["scale"]
    mask = read_mask(entry["mask"], size, blobs)
    require(type(entry["kept"]) is int and sum(mask) == entry["kept"], "kept")
    require(entry["over"] in ("kept", "all") and entry["by"] in ("signs", "values"), "over, by")
    require(scale is None or 0 <= scale == float32(scale) < math.inf, "scale")
    frozen = draw(entry["source"], entry["shape"], base)
    covered = [i for i in range(size) if entry["over"] == "all" or mask[i]]
    changes = [False] * len(covered)
    if entry["changes"] is not None:
        changes = read_mask(entry["changes"], len(covered), blobs)
    if entry["by"] == "signs":
        require(scale is not None and entry["values"] is None, "signs without a scale, or with values")
        for i, change in zip(covered, changes, strict=True):
            magnitude = abs(frozen[i]) or scale
            frozen[i] = -magnitude if (frozen[i] < 0) != change else magnitude
    else:
        require((entry["values"] is None) == (entry["changes"] is None), "values without changes, or without values")
    if entry["values"] is not None:
        values = blobs[entry["values"]]
        require(len(values) == 4 * sum(changes), "values")
        values = iter(floats(values))
        for i, change in zip(covered, changes, strict=True):
            frozen[i] = next(values) if change else frozen[i]
    require(all(map(math.isfinite, frozen)), "not finite")
    weights = frozen if scale is None else [scale * ((w > 0) - (w < 0)) for w in frozen]
    effective = [w + 0.0 if kept else 0.0 for w, kept in zip(weights, mask, strict=True)]  # -0.0 + 0.0 is 0.0
    effective = struct.pack(f"<{size}f", *effective)
    require(hashlib.sha256(effective).hexdigest() == entry["sha256"], "kernel: checksum")
    if entry["over"] == "all":
        whole = struct.pack(f"<{size}f", *(w + 0.0 for w in frozen))
        require(hashlib.sha256(whole).hexdigest() == entry["frozen_sha256"], "frozen kernel: checksum")
    return frozen, effective


def draw(source, shape, base):
    """[7] Return the weights of a source; `base` maps checksums to (shape, bytes)."""
    size = size_of(shape)
    if source["from"] == "nothing":
        return [0.0] * size
    if source["from"] == "base":
        require(source["sha256"] in base and base[source["sha256"]][0] == tuple(shape), "another base is needed")
        return floats(base[source["sha256"]][1])
    require(source["from"] == "seed", "source")
    settings = {key: source[key] for key in ("initializer", "config", "seed", "stream", "fan_in", "density")}
    return draw_seeded(size, **settings)


def draw_seeded(size, initializer, config, seed, stream, fan_in, density):
    """[8.5] Return the weights of a seed."""
    if initializer == "KaimingUniform":
        bound = math.sqrt(6 / ((1 + config["a"] * config["a"]) * fan_in))
    else:
        std = math.sqrt(2 / (fan_in * density if config["scale_fan"] else fan_in))
    if initializer == "UnsignedConstant":
        return [float32(std)] * size
    signs = random_signs(size, seed, stream)
    if initializer == "SignedConstant":
        return [sign * float32(std) for sign in signs]
    uniform = random_uniform(size, seed, stream + 1)
    if initializer == "KaimingUniform":
        return [sign * float32(bound * u) for sign, u in zip(signs, uniform, strict=True)]
    require(initializer == "KaimingNormal", "initializer")
    return [sign * float32(std * half_normal(u)) for sign, u in zip(signs, uniform, strict=True)]


def random_words(count, seed, stream):
    """[8.1] Return words of Philox 4x64-10."""
    words = []
    for block in range(-(-count // 4)):
        c0, c1, c2, c3, k0, k1 = block + 1, 0, 0, 0, seed, stream
        for _ in range(10):
            p0, p1 = 0xD2E7470EE14C6C93 * c0, 0xCA5A826395121157 * c2
            c0, c1, c2, c3 = (p1 >> 64) ^ c1 ^ k0, p1 & MASK_64, (p0 >> 64) ^ c3 ^ k1, p0 & MASK_64
            k0, k1 = (k0 + 0x9E3779B97F4A7C15) & MASK_64, (k1 + 0xBB67AE8584CAA73B) & MASK_64
        words += [c0, c1, c2, c3]
    return words[:count]


def random_signs(size, seed, stream):
    """[8.2]"""
    words = random_words(-(-size // 64), seed, stream)
    return [1.0 if words[i // 64] >> i % 64 & 1 else -1.0 for i in range(size)]


def random_uniform(size, seed, stream):
    """[8.3]"""
    words = random_words(-(-size // 2), seed, stream)
    return [((words[i // 2] >> 32 * (i % 2) & 0xFFFFFFFF) + 0.5) * 2.0**-32 for i in range(size)]


def half_normal(u):
    """[8.4]"""
    w = -log((1 - u) * (1 + u))
    p = polynomial(w - 2.5, CENTRE) if w < 5 else polynomial(math.sqrt(w) - 3, TAIL)
    return (1.4142135623730951 * p) * u


def polynomial(x, coefficients):
    result = coefficients[0]
    for coefficient in coefficients[1:]:
        result = result * x + coefficient
    return result


def log(x):
    m, e = math.frexp(x)
    if m < 0.7071067811865476:
        m, e = 2 * m, e - 1
    s = (m - 1) / (m + 1)
    return e * 0.6931471805599453 + s * polynomial(s * s, [2 / k for k in range(23, 0, -2)])


def read_variables(layer, blobs):
    """[10] Return a list of (shape, values)."""
    data, offset, variables = blobs.get(layer["path"] + "/variables", b""), 0, []
    for variable in layer["variables"]:
        form = f"<{size_of(variable['shape'])}{FORMATS[variable['stored']]}"
        require(offset + struct.calcsize(form) <= len(data), "variables")
        values = struct.unpack_from(form, data, offset)
        offset += struct.calcsize(form)
        if variable["stored"] == "bfloat16":
            values = floats(struct.pack(f"<{len(values)}I", *(value << 16 for value in values)))
        variables.append((tuple(variable["shape"]), list(values)))
    require(offset == len(data), "variables")
    return variables


def rule_of(header, name):
    """[9] Return the class of the mask rule of a layer that is in no nested model."""
    (config,) = (entry["config"] for entry in header["model"]["config"]["layers"] if entry["config"]["name"] == name)
    return config["mask"]["class_name"]


def read_scores(layer, blobs, rule):
    """[9] Return a list of floats."""
    scores, kernel = floats(blobs[layer["scores"]]), layer["kernel"]
    require(len(scores) == size_of(kernel["shape"]) and kernel["over"] == "all", "scores")
    order = sorted(range(len(scores)), key=lambda i: (-abs(scores[i]), i))
    best, mask = set(order[: kernel["kept"]]), read_mask(kernel["mask"], len(scores), blobs)
    agree = all((i in best) == kept for i, kept in enumerate(mask))
    require(agree or rule not in ("TopK", "GlobalTopK"), "the scores do not make the mask")
    return scores


# --- What keras_mpt writes, read by both ------------------------------------------------------------------------------


def mpt(seed, **kwargs):
    return keras_mpt.layers.MPTDense(kwargs.pop("units", 9), seed=seed, **kwargs)


def network(*layers, inputs=(20,)):
    model = keras.Sequential([keras.Input(inputs), *layers])
    rng = np.random.default_rng(1)
    for layer in layers:
        if not isinstance(layer, keras_mpt.layers.MPTLayer):
            for v in layer.variables:
                if "int" not in v.dtype:
                    v.assign(rng.normal(size=v.shape))
    return model


def frozen(layer):
    return np.array(ops.convert_to_numpy(layer.frozen_kernel))


def base_network():
    return network(keras.layers.Dense(9), keras.layers.Dense(4))


def on_base():
    model, base = network(mpt(3, sparsity=0.7)), base_network()
    model.layers[0].frozen_kernel.assign(base.layers[0].kernel)
    return model


def recycled(kernel_quantizer="scaled_sign"):
    model = network(mpt(4, units=40, sparsity=0.3, kernel_quantizer=kernel_quantizer))
    weights = frozen(model.layers[0])
    weights[::7, 3] *= -1
    model.layers[0].frozen_kernel.assign(weights)
    return model


def foreign(**kwargs):
    model = network(mpt(5, units=30, **kwargs))
    model.layers[0].frozen_kernel.assign(np.random.default_rng(2).normal(size=(20, 30)))
    return model


def with_zeros():
    model = network(mpt(6))
    weights = frozen(model.layers[0])
    weights[3] = 0
    weights[4] = -0.0
    model.layers[0].frozen_kernel.assign(weights)
    return model


def convolutional():
    conv = keras_mpt.layers.MPTConv2D(8, 3, sparsity=0.9, seed=2**64 - 1, name="conv")
    depthwise = keras_mpt.layers.MPTDepthwiseConv2D(3, seed=7, depthwise_initializer="kaiming_uniform")
    inner = keras.Sequential([depthwise, keras.layers.BatchNormalization()], name="block")
    return network(conv, inner, keras.layers.Flatten(), mpt(8), inputs=(7, 7, 3))


def many_types():
    dtypes = ["float16", "bfloat16", "float32"]
    if keras.backend.backend() != "jax":  # where float64 is off by default
        dtypes.append("float64")
    return network(mpt(9, use_bias=True), *(keras.layers.Dense(3, dtype=d) for d in dtypes), keras.layers.Dropout(0.1))


MODELS = {
    "signed constant": lambda: network(mpt(1), mpt(2, sparsity=0.8)),
    "unsigned constant": lambda: network(mpt(1, kernel_initializer="unsigned_constant")),
    "kaiming normal": lambda: network(mpt(11, units=300, kernel_initializer="kaiming_normal")),
    "scale_fan": lambda: network(mpt(12, kernel_initializer=keras_mpt.initializers.SignedConstant(scale_fan=True))),
    "normal, scale_fan": lambda: network(
        mpt(13, sparsity=0.8, kernel_initializer=keras_mpt.initializers.KaimingNormal(True, seed=14))
    ),
    "edge-popup": lambda: network(mpt(15, kernel_initializer="kaiming_normal", kernel_quantizer=None)),
    "edge-popup, other values": lambda: foreign(kernel_quantizer=None, sparsity=0.6),
    "recycled signs": recycled,
    "recycled values": lambda: recycled(None),
    "foreign signs": foreign,
    "signs without a seed": lambda: foreign(kernel_initializer="glorot_normal"),
    "zeros": with_zeros,
    "hardly any kept": lambda: network(mpt(16, units=200, sparsity=0.99)),
    "jackpot": lambda: network(mpt(17, mask=keras_mpt.masks.Restricted(0.5), kernel_quantizer=None)),
    "partially frozen": lambda: network(mpt(18, mask=keras_mpt.masks.PartiallyFrozen(0.8, pruned=0.5, locked=0.1))),
    "hardly searched": lambda: network(mpt(19, mask=keras_mpt.masks.PartiallyFrozen(0.5, pruned=0.1, locked=0.48))),
    "2 of 4": lambda: network(mpt(20, mask=keras_mpt.masks.NofM(2, 4)), mpt(21, mask=keras_mpt.masks.NofM(2, 3))),
    "4 of 20": lambda: network(mpt(22, mask=keras_mpt.masks.NofM(4, 20), kernel_quantizer=None)),
    "flat groups": lambda: network(mpt(23, mask=keras_mpt.masks.NofM(1, 12, axis="flat"))),
    "nested": convolutional,
    "types": many_types,
    "base": on_base,
}


def checksum_table(model):
    arrays = [ops.convert_to_numpy(w) + np.float32(0) for w in model.weights if len(w.shape) > 1]
    return {hashlib.sha256(a.tobytes()).hexdigest(): (a.shape, a.tobytes()) for a in arrays}


def variables_of(model, path):
    """Return the variables of a layer that are not those of a mask."""
    for name in path.split("/"):
        model = model.get_layer(name)
    theirs = ("scores", "frozen_kernel", "kernel_epoch", "quota", "threshold", "nan_steps")
    theirs += ("stored_mask", "mask_is_stored", "swap_rate", "frozen", "locked", "searched")
    return [v for v in model.variables if not (isinstance(model, keras_mpt.layers.MPTLayer) and v.name in theirs)]


@pytest.mark.parametrize("saving", [{}, {"scores": True}, {"dtype": "float16"}], ids=["plain", "scores", "float16"])
@pytest.mark.parametrize("name", MODELS)
def test_the_reader_reads_the_same(name, saving, tmp_path):
    model, base = MODELS[name](), base_network() if name == "base" else None
    ticket = keras_mpt.save_ticket(model, tmp_path / "ticket.mpt", base=base, **saving)
    header, blobs = read_file((tmp_path / "ticket.mpt").read_bytes())
    assert header["model"] == ticket.config
    assert [layer["path"] for layer in header["layers"]] == list(ticket.layers)
    for layer in header["layers"]:
        path = layer["path"]
        if layer["kernel"]:
            weights, effective = read_kernel(layer["kernel"], blobs, checksum_table(base) if base else {})
            kernel = ticket.kernel(path, base)
            assert effective == kernel.effective.astype("<f4").tobytes()
            assert np.array(weights, "<f4").tobytes() == kernel.frozen.astype("<f4").tobytes()
        if saving.get("scores") and layer["kernel"]:
            scores = ops.convert_to_numpy(model.get_layer(path.split("/")[0]).scores) if "/" not in path else None
            assert scores is None or read_scores(layer, blobs, rule_of(header, path)) == scores.ravel().tolist()
            assert scores is None or weights == frozen(model.get_layer(path)).ravel().tolist()
        else:
            assert layer["scores"] is None
        for (shape, values), v in zip(read_variables(layer, blobs), variables_of(model, path), strict=True):
            expected = ops.convert_to_numpy(ops.cast(v, "float32") if v.dtype == "bfloat16" else v)
            if saving.get("dtype") == "float16" and v.dtype == "float32":
                expected = expected.astype("float16")
            assert shape == v.shape and values == expected.ravel().tolist()


def test_all_that_the_page_describes_occurs(tmp_path):
    seen = set()
    some = (
        "signed constant",
        "unsigned constant",
        "edge-popup",
        "recycled signs",
        "signs without a seed",
        "nested",
        "base",
        "partially frozen",
        "2 of 4",
        "4 of 20",
        "flat groups",
    )
    for name in some:
        ticket = keras_mpt.save_ticket(
            MODELS[name](), tmp_path / "t.mpt", base=base_network() if name == "base" else None
        )
        for entry in filter(None, (layer["kernel"] for layer in ticket.layers.values())):
            changes = entry["changes"] or {"coding": None}
            seen |= {entry["by"], entry["source"]["from"], entry["source"].get("initializer"), changes["coding"]}
            seen |= {(entry["mask"]["coding"], entry["mask"].get("inverted"))}
            seen |= {("stride", entry["mask"].get("stride"))}
    assert seen >= {"signs", "values", "seed", "base", "nothing", "bits", "gaps"}
    assert seen >= {"SignedConstant", "UnsignedConstant", "KaimingNormal", "KaimingUniform"}
    assert seen >= {("bits", False), ("bits", True), ("gaps", False), ("groups", None), ("searched", False)}
    assert seen >= {("stride", 1), ("stride", 9)}


def test_a_padded_ticket(tmp_path):
    keras_mpt.save_ticket(network(mpt(1, units=5000, sparsity=0.99999), inputs=(900,)), tmp_path / "padded.mpt")
    header, blobs = read_file((tmp_path / "padded.mpt").read_bytes())
    assert any(name == "padding" and not any(blobs[name]) for name, *_ in header["blobs"])


def change_kernel(**kwargs):
    return lambda layer, blobs: layer["kernel"].update(kwargs)


@pytest.mark.parametrize("scale", [0.1, -1.0, math.inf, math.nan])
def test_scales_that_the_format_does_not_allow(scale, tmp_path):
    """Each with the checksum of the kernel that it makes: nothing else is wrong."""
    ticket = keras_mpt.save_ticket(recycled(), tmp_path / "ticket.mpt")
    ((path, layer),) = ticket.layers.items()
    kernel, entry = ticket.kernel(path), layer["kernel"]
    blocks = kernels.Kernel(kernel.frozen, kernel.mask, scale).effective_blocks()
    entry |= {"scale": scale, "sha256": kernels._sha256(blocks)}
    content = {"created": ticket.created, "software": {}, "provenance": {}, "model": {}, "layers": [layer]}
    with pytest.raises(ValueError, match="layer 'mpt_dense.*': `scale` must be null or a finite float32 number >= 0"):
        keras_mpt.tickets.header.check(content, ticket.blobs, ticket.size, 1)


DAMAGES = {
    "shape": change_kernel(shape=[40, 20, -1, -1]),
    "kept": change_kernel(kept=559),
    "signs as values": change_kernel(by="values"),
    "over": change_kernel(over="x"),
    "by": change_kernel(by="x"),
    "values": change_kernel(values="out/values"),
    "scale": change_kernel(scale=0.5),
    "coding": lambda layer, blobs: layer["kernel"]["mask"].update(coding="x"),
    "checksum": change_kernel(sha256="0" * 64),
    "source": change_kernel(source={"from": "elsewhere"}),
    "missing base": change_kernel(source={"from": "base", "sha256": "0" * 64}),
    "seed": lambda layer, blobs: layer["kernel"]["source"].update(seed=5),
    "initializer": lambda layer, blobs: layer["kernel"]["source"].update(initializer="HeNormal"),
    "after the mask": lambda layer, blobs: blobs.update({layer["kernel"]["mask"]["blob"]: b"\0"}),
    "variables": lambda layer, blobs: blobs.update({layer["path"] + "/variables": b"\0"}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_both_refuse(damage, tmp_path):
    keras_mpt.save_ticket(recycled(), tmp_path / "ticket.mpt")
    header, blobs = read_file((tmp_path / "ticket.mpt").read_bytes())
    (layer,) = header["layers"]
    DAMAGES[damage](layer, blobs)
    container.write(tmp_path / "damaged.mpt", header, blobs, lambda path: None)
    with pytest.raises(keras_mpt.TicketError):
        keras_mpt.load_ticket(tmp_path / "damaged.mpt")
    with pytest.raises(Refused):
        header, blobs = read_file((tmp_path / "damaged.mpt").read_bytes())
        read_kernel(layer["kernel"], blobs, {})
        read_variables(layer, blobs)


def put(place, value):
    """Return a change of a header: `value` at a place, such as "layers.0.kernel.kept"; DELETE takes it away."""

    def change(header):
        *path, key = [int(part) if part.isdigit() else part for part in place.split(".")]
        for part in path:
            header = header[part]
        if value is DELETE:
            del header[key]
        else:
            header[key] = value

    change.text = f"{place} deleted" if value is DELETE else f"{place}={value!r}"[:60]
    return change


DELETE = object()
KERNEL = "layers.0.kernel"
BROKEN = [put("created", "yesterday"), put("created", "2026-11-20T12:59:57"), put("created", 1), put("software", [])]
BROKEN += [put("software.keras", 3), put("provenance", []), put("model", "x"), put("layers.0.class", 3)]
BROKEN += [put("settings", {"floatx": "int8"}), put("settings", {"dtype_policy": None}), put("layers.0.path", 3)]
BROKEN += [put("layers.1.scores", "none"), put("layers.0.scores", f"{0}"), put("layers.0.variables.0.name", 3)]
BROKEN += [put("layers.1.variables.0.dtype", "float64"), put("layers.1.variables.0.dtype", "x")]
BROKEN += [put(f"{KERNEL}.kept", True), put(f"{KERNEL}.mask.more", 1), put(f"{KERNEL}.mask.blob", "none")]
BROKEN += [put(f"{KERNEL}.mask.inverted", 0), put(f"{KERNEL}.mask.coding", "zeros"), put(f"{KERNEL}.source.more", 1)]
BROKEN += [put(f"{KERNEL}.source.seed", 1.0), put(f"{KERNEL}.source.stream", -1), put(f"{KERNEL}.source.fan_in", 0)]
BROKEN += [put(f"{KERNEL}.source.density", 0), put(f"{KERNEL}.source.density", 1.5), put(f"{KERNEL}.sha256", "00")]
BROKEN += [put(f"{KERNEL}.source.config", {}), put(f"{KERNEL}.source.config", {"scale_fan": 0})]
BROKEN += [put(f"{KERNEL}.source", {"from": "nothing", "seed": 1}), put(f"{KERNEL}.source", {"from": "base"})]
BROKEN += [
    put(f"{KERNEL}.frozen_sha256", "0" * 64),
    put(f"{KERNEL}.sha256", "A" * 64),
    put(f"{KERNEL}.shape", [8, 6.0]),
]
BROKEN += [put(f"{KERNEL}.over", "some"), put("layers.0.subnets", [{"name": "b", "kernel": None, "scores": None}])]
BROKEN += [
    put(f"{key}.{name}", DELETE)
    for key, names in (("layers.0", "class kernel scores variables"),)
    for name in names.split()
]
BROKEN += [put(name, DELETE) for name in "created software provenance model layers".split()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    file = tmp_path_factory.mktemp("tickets") / "whole.mpt"
    layers = mpt(1, units=6, use_bias=True, sparsity=0.4), keras.layers.BatchNormalization()
    keras_mpt.save_ticket(network(*layers, inputs=(8,)), file)
    return file.read_bytes()


@pytest.mark.parametrize("change", BROKEN, ids=lambda change: change.text)
def test_both_refuse_what_breaks_a_rule(change, whole, tmp_path):
    header, blobs = opened(whole)
    read_file(sealed(header, blobs))
    changed = copy.deepcopy(header)
    change(changed)
    (tmp_path / "broken.mpt").write_bytes(sealed(changed, blobs))
    with pytest.raises(keras_mpt.TicketError, match="broken.mpt"):
        keras_mpt.tickets.Ticket.read(tmp_path / "broken.mpt")
    with pytest.raises((Refused, KeyError, TypeError, ValueError, AttributeError)):
        read_file(sealed(changed, blobs))


AMBIGUOUS = {"a key twice": '{"a": 1, "a": 2}', "NaN": "[NaN]", "infinity": "-Infinity", "a large number": "1e999"}
AMBIGUOUS |= {"a large integer": f"{2**64}", "many digits": "1" * 100_000, "half a pair": r'"\ud800"'}
AMBIGUOUS |= {"half a pair as a key": r'{"\udc00": 1}', "no UTF-8": '"\xff"', "a small integer": f"-{2**64}"}


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_both_refuse_ambiguous_json(case, whole, tmp_path):
    header, blobs = opened(whole)
    listed = [[name, len(data), hashlib.sha256(data).hexdigest()] for name, data in blobs.items()]
    text = json.dumps({**header, "provenance": {"x": "HERE"}, "blobs": listed}).replace('"HERE"', AMBIGUOUS[case])
    content = seal(text.encode("latin-1" if case == "no UTF-8" else "utf-8"), blobs)
    (tmp_path / "broken.mpt").write_bytes(content)
    with pytest.raises(keras_mpt.TicketError, match="broken.mpt"):
        keras_mpt.tickets.Ticket.read(tmp_path / "broken.mpt")
    with pytest.raises((Refused, ValueError)):
        read_file(content)
    good = json.dumps({**header, "provenance": {"x": [2**64 - 1, -0.0, "\U0001f600", 1e300]}, "blobs": listed})
    read_file(seal(good.encode(), blobs))
    (tmp_path / "good.mpt").write_bytes(seal(good.encode(), blobs))
    assert keras_mpt.tickets.Ticket.read(tmp_path / "good.mpt").provenance["x"][0] == 2**64 - 1


# A byte of the magic, the version, the header's size, its checksum, the header, a blob; and the file's length.
@pytest.mark.parametrize("position", [0, 8, 12, 16, 47, 48, 500, -1, None])
def test_both_refuse_a_damaged_byte(position, tmp_path):
    keras_mpt.save_ticket(recycled(), tmp_path / "ticket.mpt")
    content = bytearray((tmp_path / "ticket.mpt").read_bytes())
    if position is None:
        content.append(0)
    else:
        content[position] ^= 1
    (tmp_path / "ticket.mpt").write_bytes(content)
    with pytest.raises(keras_mpt.TicketError):
        keras_mpt.load_ticket(tmp_path / "ticket.mpt")
    with pytest.raises(Refused):
        read_file(bytes(content))


# --- The page itself --------------------------------------------------------------------------------------------------


def json_blocks():
    return [json.loads(text) for text in re.findall(r"^```json\n(.*?)^```", DOCUMENT.read_text("utf-8"), re.S | re.M)]


def test_the_test_vectors_of_the_page():
    vectors = json_blocks()[-1]
    for case in vectors["philox"]:
        words = random_words(len(case["words"]), int(case["seed"]), case["stream"])
        assert [f"{word:016x}" for word in words] == case["words"]
        key = np.array([int(case["seed"]), case["stream"]], np.uint64)
        assert np.random.Philox(key=key).random_raw(len(words)).tolist() == words
    for u, z in vectors["half_normal"]:
        u, z = (struct.unpack(">d", bytes.fromhex(number))[0] for number in (u, z))
        assert half_normal(u) == z == keras_mpt.initializers.half_normal(np.array([u]))[0]
    for case in vectors["kernels"]:
        source, shape = dict(case["source"]), case["shape"]
        assert np.array(draw(source, shape, {}), "<f4").tobytes().hex() == case["bytes"]
        initializer = getattr(keras_mpt.initializers, source.pop("initializer"))(**source.pop("config"))
        source["kept"] = source.pop("density")
        del source["from"]
        assert initializer.draw(tuple(shape), **source).astype("<f4").tobytes().hex() == case["bytes"]
    for case in vectors["masks"]:
        mask = read_mask({**case["form"], "blob": "x"}, case["size"], {"x": bytes.fromhex(case["blob"])})
        assert [i for i, bit in enumerate(mask) if bit] == case["ones"]
        way = None
        if case["form"]["coding"] in ("searched", "groups"):
            settings = {key: case["form"][key] for key in case["form"] if key not in ("coding", "of", "inverted")}
            way = (case["form"]["coding"], settings)
        form, data = keras_mpt.tickets.coding.encode(np.array(mask), way)
        assert form == case["form"] and inflate(data, 600) == inflate(bytes.fromhex(case["blob"]), 600)


def test_the_example_header_has_the_keys_of_a_real_one(tmp_path):
    example = json_blocks()[0]
    hidden, out = (
        mpt(1, units=6, name="hidden"),
        mpt(
            2,
            units=3,
            sparsity=0.2,
            kernel_quantizer=None,
            name="out",
            kernel_initializer="kaiming_normal",
            use_bias=True,
        ),
    )
    model = keras.Sequential([keras.Input((8,)), hidden, keras.layers.BatchNormalization(name="norm"), out])
    weights = frozen(hidden)
    weights[0] *= -1
    hidden.frozen_kernel.assign(weights)
    keras_mpt.save_ticket(model, tmp_path / "tiny.mpt", provenance={"note": "x"})
    header, _ = read_file((tmp_path / "tiny.mpt").read_bytes())
    assert list(example) == list(header)
    assert example["layers"] == header["layers"]
    assert [blob[0] for blob in example["blobs"]] == [blob[0] for blob in header["blobs"]]


def test_the_page_lists_what_a_model_may_hold():
    section = DOCUMENT.read_text("utf-8").split("\n## 11.")[1].split("\n## 12.")[0]
    (block,) = re.findall(r"^```text\n(.*?)^```", section, re.S | re.M)
    listed = {}
    for paragraph in block.strip().split("\n\n"):
        module, _, names = paragraph.partition(":")
        listed[module] = set(names.split())
    assert listed == _ALLOWED
