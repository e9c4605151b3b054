"""Published tickets: complete, intact, found by name, with the outputs they had when they were published."""

import argparse
import dataclasses
import functools
import hashlib
import importlib
import inspect
import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile

import keras
import numpy as np
import pytest
from absl.flags import FLAGS

import keras_mpt
from keras_mpt import zoo
from keras_mpt.__main__ import main as command_line
from keras_mpt.convert.flatbuffer import File
from keras_mpt.models import mpt_layers
from keras_mpt.tickets import Ticket, TicketError
from keras_mpt.zoo import presets
from support.layer_contract import numpy
from support.small_images import small_cifar10

ROOT = pathlib.Path(__file__).resolve().parent.parent
PUBLISHED = zoo.list_presets()
each = pytest.mark.parametrize("preset", PUBLISHED, ids=lambda preset: preset.name)
same_on_all_backends = pytest.mark.slow_with("jax", "torch")


@pytest.fixture(scope="module")
def made():
    """Return a function that makes the model of a preset once, and its logits for the golden images."""

    def make(preset):
        model = preset.model()
        return model, numpy(model(preset.preprocess(preset.golden_images())))

    return functools.cache(make)


def test_something_is_published():
    assert PUBLISHED
    assert {preset.name for preset in PUBLISHED} == {path.stem for path in (ROOT / "zoo").glob("*.mpt")}
    assert {type(preset) for preset in PUBLISHED} == {zoo.Preset}


def test_one_default_for_each_architecture_and_dataset():
    keys = {(preset.architecture, preset.dataset) for preset in PUBLISHED}
    assert sorted(keys) == sorted((preset.architecture, preset.dataset) for preset in PUBLISHED if preset.default)


def test_presets_of_an_architecture_that_there_is_not():
    assert zoo.list_presets("conv4_mpt") and not zoo.list_presets("conv8_mpt")
    with pytest.raises(ValueError, match="`architecture` must be one of keras_mpt.zoo: conv2_mpt.*'conv4'"):
        zoo.list_presets("conv4")


def test_presets_print_in_a_line_and_can_be_hashed():
    preset = zoo.get_preset("conv4_mpt32_s80")
    line = "<Preset conv4_mpt32_s80: float activations, 20% kept, 223,655 bytes, 78.24% on cifar10>"
    assert repr(preset) == str(preset) == line
    lottery = zoo.get_preset("whitened_conv6_mpt32_s95_lottery")
    assert (preset.weights, lottery.weights) == ("binary", "float")
    assert "_lottery: float weights and float activations, 5% kept" in repr(lottery)
    assert len(set(PUBLISHED)) == len(PUBLISHED) and {preset: 1}[dataclasses.replace(preset)] == 1


def test_the_table_of_presets():
    lines = str(PUBLISHED).splitlines()
    assert repr(PUBLISHED) == str(PUBLISHED) and len(lines) == 1 + len(PUBLISHED)
    assert len({len(line) for line in lines}) == 1 and len(lines[0]) <= 100
    assert lines[0].split("  ")[0] == "preset" and lines[0].endswith("accuracy")
    (line,) = [line for line in lines if line.startswith("conv4_mpt11_s50 ")]
    assert line.split() == "conv4_mpt11_s50 binary 50% 313,782 97 M 2 M 70.39%".split()
    assert str(zoo.list_presets("conv8_mpt")).split() == lines[0].split()  # the header alone


FILTERS = [
    ({"activations": "binary"}, lambda p: p.arguments["input_quantizer"] is not None),
    ({"activations": "float"}, lambda p: p.arguments["input_quantizer"] is None),
    ({"max_bytes": 313_782}, lambda p: len(p.path.read_bytes()) <= 313_782),
    ({"min_accuracy": 0.7824}, lambda p: p.accuracy >= 0.7824),
    ({"architecture": "conv4_mpt", "max_bytes": 310_000}, lambda p: p.name in ("conv4_mpt32_s50", "conv4_mpt32_s80")),
]


@pytest.mark.parametrize("given, wanted", FILTERS, ids=lambda value: str(value) if isinstance(value, dict) else "")
def test_filters(given, wanted):
    found = zoo.list_presets(**given)
    assert 0 < len(found) < len(PUBLISHED) and list(found) == [preset for preset in PUBLISHED if wanted(preset)]


@pytest.mark.parametrize("given", [{"activations": "ternary"}, {"max_bytes": 0}, {"min_accuracy": 79}], ids=str)
def test_filters_that_there_are_not(given):
    with pytest.raises(ValueError, match=f"`{[*given][0]}` must be .*Received: {[*given][0]}="):
        zoo.list_presets(**given)


@same_on_all_backends
def test_a_name_wherever_a_path_is_taken(capsys, tmp_path, monkeypatch):
    preset = zoo.get_preset("conv4_mpt32_s80")
    assert Ticket.read(preset.name).path == preset.path
    assert keras_mpt.load_ticket(preset.name).name == "conv4_mpt"
    assert keras_mpt.analysis.overlap(preset.name, preset.path).total.jaccard == 1
    assert command_line(["inspect", preset.name]) == 0 and "223,655" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="name of a preset. Did you mean 'conv4_mpt32_s80'.*'conv4_mpt32_s8'"):
        keras_mpt.load_ticket("conv4_mpt32_s8")
    monkeypatch.chdir(tmp_path)
    saved("conv4_mpt32_s80")  # a file of this name comes first
    assert keras_mpt.load_ticket("conv4_mpt32_s80").name == "conv2_mpt"
    for path in ("none/conv4_mpt32_s80", pathlib.Path("conv4_mpt32_s50"), "conv4_mpt32_s50.mpt"):
        with pytest.raises(FileNotFoundError, match="conv4"):
            keras_mpt.load_ticket(path)


@each
@same_on_all_backends
def test_counts(preset):
    entries = [entry["kernel"] for entry in Ticket.read(preset.name).layers.values() if entry["kernel"]]
    assert preset.counts["weights"] == sum(int(np.prod(entry["shape"])) for entry in entries)
    assert preset.counts["kept"] == sum(entry["kept"] for entry in entries)
    assert preset.input_shape == preset.golden_images().shape[1:] == (32, 32, 3)


@each
def test_golden_outputs(preset, made):
    model, logits = made(preset)
    assert model.name == preset.architecture
    np.testing.assert_allclose(logits, preset.golden, rtol=1e-3, atol=1e-3)
    assert np.shape(preset.golden)[1] == len(preset.classes)


@each
def test_file_is_the_one_that_was_published(preset, made):
    assert hashlib.sha256(preset.path.read_bytes()).hexdigest() == preset.sha256
    ticket = Ticket.read(preset.path)
    assert ticket.provenance["accuracy"] == preset.accuracy
    loaded, (built, logits) = keras_mpt.load_ticket(preset.path), made(preset)
    np.testing.assert_array_equal(numpy(loaded(preset.preprocess(preset.golden_images()))), logits)
    for one, two in zip(mpt_layers(loaded), mpt_layers(built), strict=True):
        assert one.get_config() == two.get_config()


@pytest.fixture
def publish(scripts):
    import publish

    return publish


@same_on_all_backends
def test_cards_and_table_are_those_of_the_presets(publish, tmp_path):
    publish.write_texts(json.loads((ROOT / "zoo" / "presets.json").read_text()), tmp_path)
    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert written.keys() == {"presets.json", "README.md", *(f"{preset.name}.md" for preset in PUBLISHED)}
    for name, text in written.items():
        assert (ROOT / "zoo" / name).read_text() == text, f"{name} is not what examples/recipes/publish.py writes"


@each
@same_on_all_backends
def test_card_and_logs_say_the_same(preset, publish):
    card = (ROOT / "zoo" / f"{preset.name}.md").read_text()
    for text in (
        f"{preset.accuracy:.2%}",
        preset.data,
        preset.name,
        preset.sha256,
        preset.recipe,
        preset.note,
        preset.found,
    ):
        assert text in card
    assert len((ROOT / "zoo" / f"{preset.name}.csv").read_text().splitlines()) == 1 + preset.epochs
    assert (ROOT / "zoo" / f"{preset.name}.png").exists()
    assert preset.dense is None or preset.dense == publish.dense(ROOT / "zoo" / preset.dense["log"])


@same_on_all_backends
@pytest.mark.parametrize("script", sorted({shlex.split(preset.recipe)[1] for preset in PUBLISHED}))
def test_the_recipe_makes_the_network(script, scripts, monkeypatch):
    """The flags of the command on the card are those that the ticket's arguments came from."""
    made = [preset for preset in PUBLISHED if shlex.split(preset.recipe)[:2] == ["python", script]]
    name = pathlib.Path(script).stem
    monkeypatch.setattr(sys, "argv", [name])  # the flags are those of the module of this name
    module, found = importlib.import_module(name), []
    assert pathlib.Path(module.__file__) == ROOT / script
    for preset in made:
        FLAGS.unparse_flags()
        FLAGS([name, *shlex.split(preset.recipe)[2:], "--output_dir=unused"])
        told = [module.architecture(), module.arguments(), module.epochs(), FLAGS.seed]
        found.append(json.loads(json.dumps(told)))  # as a ticket's provenance holds it
    for (_, known, *_), preset in zip(found, made, strict=True):
        for name in known.keys() - preset.arguments.keys():  # newer than the ticket, which had the default
            assert known.pop(name) == inspect.signature(getattr(zoo, preset.architecture)).parameters[name].default
    assert found == [[preset.architecture, preset.arguments, preset.epochs, preset.seed] for preset in made]


@each
@same_on_all_backends
def test_converted_files_are_those_that_were_published(preset):
    binary = preset.arguments["input_quantizer"] is not None
    card = (ROOT / "zoo" / f"{preset.name}.md").read_text()
    assert set(preset.converted) == ({"tflite", "lce"} if binary else {"tflite"})
    for found in preset.converted.values():
        assert f"{found['bytes']:,} bytes" in card and f"{found['accuracy']:.2%}" in card
        assert "file" in found or not binary
        assert abs(found["accuracy"] - preset.accuracy) <= (found["flips"] + found.get("tied", 0)) / 10_000
        if "file" not in found:
            with pytest.raises(ValueError, match=r"`runtime` must be one of \['keras'\] for .* runtime='tflite'"):
                preset.published("tflite")
        else:
            content = (ROOT / "zoo" / found["file"]).read_bytes()
            assert len(content) == found["bytes"] and hashlib.sha256(content).hexdigest() == found["sha256"]
    assert preset.dense is None or f"{preset.dense['accuracy']:.2%}" in card


@pytest.mark.tensorflow_only
@pytest.mark.parametrize(
    "preset", [p for p in PUBLISHED if "file" in p.converted["tflite"]], ids=lambda preset: preset.name
)
def test_phone_files_compute_what_the_ticket_does(preset, made):
    pytest.importorskip("larq_compute_engine")
    images = preset.preprocess(preset.golden_images())
    for target, found in preset.converted.items():
        logits = keras_mpt.convert.run(ROOT / "zoo" / found["file"], target, images)
        np.testing.assert_allclose(logits, preset.golden, rtol=1e-3, atol=1e-3)
    if "lce" not in preset.converted:
        return
    file = File((ROOT / "zoo" / preset.converted["lce"]["file"]).read_bytes())
    binary = [layer for layer in mpt_layers(made(preset)[0]) if layer.input_quantizer is not None]
    assert file.operations()["LceBconv2d"] == len(binary) > 0
    with pytest.raises(ValueError, match="`target` must be 'lce'"):
        keras_mpt.convert.run(ROOT / "zoo" / preset.converted["lce"]["file"], "tflite", images)


@same_on_all_backends
def test_loading_by_name_dataset_and_path(made):
    preset = PUBLISHED[0]
    builder = getattr(zoo, preset.architecture)
    assert zoo.get_preset(preset.name) is preset
    assert preset in zoo.list_presets(preset.architecture)
    x = preset.preprocess(preset.golden_images())
    _, expected = made(preset)
    ways = [builder(weights=preset.name), builder(weights=preset.path, **preset.arguments)]
    ways += [builder(weights=preset.dataset)] if preset.default else []
    for model in ways:
        np.testing.assert_array_equal(numpy(model(x)), expected)


MADE_WITH = {"input_shape": [8, 8, 3], "input_quantizer": "approx_sign", "pad_values": 1.0, "width": 0.06, "seed": 0}


def saved(path, **provenance):
    """Return a small MPT-1/1 and write its ticket."""
    model = zoo.conv2_mpt(**MADE_WITH)
    keras_mpt.save_ticket(model, path, provenance=provenance)
    return model


@same_on_all_backends
def test_a_ticket_file_brings_its_arguments(tmp_path, rng):
    file = tmp_path / "conv2.mpt"
    model, x = saved(file, architecture="conv2_mpt", arguments=MADE_WITH), rng.normal(size=(4, 8, 8, 3))
    for built in (zoo.conv2_mpt(weights=file), zoo.conv2_mpt(weights=str(file), **MADE_WITH)):
        np.testing.assert_array_equal(numpy(built(x)), numpy(model(x)))
    with pytest.raises(TicketError, match="With other classes than those of the ticket, `include_top` must be False"):
        zoo.conv2_mpt(weights=file, classes=3)
    features = zoo.conv2_mpt(weights=file, include_top=False)
    inner = keras.Model(model.inputs[0], model.get_layer("norm2").output)
    np.testing.assert_array_equal(numpy(features(x)), numpy(inner(x)))
    same = {"input_shape": (8, 8, 3), "input_quantizer": keras_mpt.quantizers.ApproxSign(), "width": np.float64(0.06)}
    assert zoo.conv2_mpt(weights=file, **same)
    for other, value in {"pad_values": 0.0, "input_quantizer": None, "width": 0.12}.items():
        with pytest.raises(ValueError, match=f"`{other}` must be left out or that of the ticket"):
            zoo.conv2_mpt(weights=file, **{other: value})
    with pytest.raises(ValueError, match="`weights` must be a ticket of conv4_mpt. Received: .*, one of conv2_mpt"):
        zoo.conv4_mpt(weights=file)


@same_on_all_backends
def test_a_ticket_file_of_unknown_arguments_fits_its_own_network_only(tmp_path, rng):
    file = tmp_path / "conv2.mpt"
    model, x = saved(file, data="none"), rng.normal(size=(4, 8, 8, 3))
    np.testing.assert_array_equal(numpy(zoo.conv2_mpt(weights=file, **MADE_WITH)(x)), numpy(model(x)))
    assert zoo.conv2_mpt(weights=file, include_top=False, **MADE_WITH)
    without = {name: value for name, value in MADE_WITH.items() if name != "seed"}
    for same in ({"seed": None}, {"kernel_initializer": keras_mpt.initializers.KaimingNormal()}):
        np.testing.assert_array_equal(numpy(zoo.conv2_mpt(weights=file, **without, **same)(x)), numpy(model(x)))
    with pytest.raises(TicketError, match="With other input_shape than those of the ticket, `include_top` must be"):
        zoo.conv2_mpt(weights=file, **{**MADE_WITH, "input_shape": (16, 16, 3)})
    with pytest.raises(TicketError, match="layer 'conv1'") as error:  # which every network has
        zoo.conv2_mpt(weights=file, **{**MADE_WITH, "input_shape": (8, 8, 1)})
    assert "include_top" not in str(error.value)
    for other, default, message in [
        ("pad_values", 0.0, "layer 'conv2' has pad_values=1.0 in the file, pad_values=0.0 in the model"),
        ("input_quantizer", None, "'relu1' is missing in the file, and ReLU of conv1 in conv2_mpt"),
        ("seed", 5, "`seed` must be left out or that of the ticket, [0-9]+ for layer 'conv1'. Received: [0-9]+ for it"),
        ("kernel_initializer", "signed_constant", "`kernel_initializer` must be .*KaimingNormal.* for layer 'conv1'"),
    ]:
        with pytest.raises(TicketError, match=message):
            zoo.conv2_mpt(weights=file, **{**MADE_WITH, other: default})


@same_on_all_backends
def test_a_ticket_is_a_file_or_folder_of_any_name(tmp_path):
    preset = zoo.get_preset("conv4_mpt32_s50")
    for name in ("ticket.mpt", "no suffix"):
        shutil.copy(preset.path, tmp_path / name)
    for path in (tmp_path, str(tmp_path), str(tmp_path / "no suffix")):
        ticket, _, published = zoo.weights.resolve("conv4_mpt", path)
        assert ticket.size == preset.bytes and not published


@same_on_all_backends
def test_a_ticket_of_another_sparsity(tmp_path):
    saved(tmp_path / "bare.mpt")
    assert zoo.conv2_mpt(weights=tmp_path / "bare.mpt", sparsity=0.5, **MADE_WITH)
    with pytest.raises(TicketError, match="`sparsity` and `mask` must .* keeps 50.*%.* Received: 10.*%$"):
        zoo.conv2_mpt(weights=tmp_path / "bare.mpt", classes=10, mask=keras_mpt.masks.GlobalTopK(0.9), **MADE_WITH)


@same_on_all_backends
def test_operations_may_be_numbered_in_another_way(tmp_path):
    made_with = {"input_shape": [8, 8, 3], "width": 0.125, "seed": 0}
    zoo.resnet20_mpt(**made_with)  # whose padding is the first of this process, perhaps
    provenance = {"architecture": "resnet20_mpt", "arguments": made_with}
    keras_mpt.save_ticket(zoo.resnet20_mpt(**made_with), tmp_path / "a.mpt", provenance=provenance)
    assert zoo.resnet20_mpt(weights=tmp_path / "a.mpt")


@same_on_all_backends
@pytest.mark.parametrize("part", [False, True])
def test_a_ticket_of_a_network_with_other_shortcuts(part, tmp_path):
    """Layers with weights are the same, so that only the wiring tells."""
    made_with = {"input_shape": [16, 16, 3], "width": 0.06, "seed": 0}
    model = zoo.whitened_conv6_mpt(**made_with)

    def without_shortcuts(layer, *args, **kwargs):
        return args[0][1] if layer.name == "add4" else layer(*args, **kwargs)

    other = keras.models.clone_model(model, call_function=without_shortcuts, clone_function=lambda layer: layer)
    provenance = {"architecture": "whitened_conv6_mpt", "arguments": made_with}
    keras_mpt.save_ticket(model, tmp_path / "a.mpt", provenance=provenance)
    keras_mpt.save_ticket(other, tmp_path / "b.mpt", provenance=provenance)
    assert zoo.whitened_conv6_mpt(weights=tmp_path / "a.mpt", include_top=not part)
    with pytest.raises(TicketError, match="layer 'add4' is missing in the file, and Add of gelu3, gelu4 in whitened"):
        zoo.whitened_conv6_mpt(weights=tmp_path / "b.mpt", include_top=not part)


@pytest.mark.parametrize(
    "arguments, error",
    [
        ({"colour": "red"}, "must be a ticket of conv2_mpt.*made with colour='red'"),
        ({"kernel_initializer": {"class_name": "Lambda", "module": "keras.layers", "config": {}}}, "cannot be used"),
    ],
    ids=["unknown", "not plain data"],
)
def test_arguments_that_a_ticket_file_may_not_have(arguments, error, tmp_path):
    saved(tmp_path / "conv2.mpt", architecture="conv2_mpt", arguments=arguments)
    with pytest.raises(ValueError, match=error):
        zoo.conv2_mpt(weights=tmp_path / "conv2.mpt")


def test_a_ticket_file_cannot_ask_for_more_memory_than_it_has_weights(tmp_path):
    arguments = {**MADE_WITH, "width": 1e4}  # two kernels of four terabytes
    saved(tmp_path / "conv2.mpt", architecture="conv2_mpt", arguments=arguments)
    with pytest.raises(TicketError, match="conv2.mpt: the model cannot be made: the variables are larger"):
        zoo.conv2_mpt(weights=tmp_path / "conv2.mpt")


@same_on_all_backends
def test_features_of_a_preset(made):
    preset = PUBLISHED[0]
    (whole, _), features = made(preset), preset.model(include_top=False)
    x = preset.preprocess(preset.golden_images())
    inner = keras.Model(whole.inputs[0], whole.get_layer(features.layers[-1].name).output)
    np.testing.assert_array_equal(numpy(features(x)), numpy(inner(x)))


def test_wrong_names_suggest_the_near_one():
    with pytest.raises(ValueError, match="Did you mean 'cifar10'"):
        zoo.conv4_mpt(weights="cifar-10")
    with pytest.raises(ValueError, match=PUBLISHED[0].name):
        zoo.get_preset(PUBLISHED[0].name + "x")
    with pytest.raises(ValueError) as error:  # of several architectures, so no name of a preset
        zoo.get_preset("cifar10")
    assert str(error.value).count("'cifar10'") == 1
    with pytest.raises(FileNotFoundError):
        zoo.conv4_mpt(weights="nowhere.mpt")
    with pytest.raises(ValueError, match="Received: weights='conv4_mpt32_s50', one of conv4_mpt"):
        zoo.conv2_mpt(weights="conv4_mpt32_s50")


@same_on_all_backends
def test_arguments_that_the_ticket_fixes():
    preset = next(preset for preset in PUBLISHED if preset.architecture == "conv4_mpt")
    with pytest.raises(ValueError, match="sparsity"):
        zoo.conv4_mpt(weights=preset.name, sparsity=0.9)
    with pytest.raises(TicketError, match="logits"):
        zoo.conv4_mpt(weights=preset.name, classes=7)
    initializer = keras_mpt.initializers.get(preset.arguments["kernel_initializer"])  # an object of the config
    same = {"sparsity": preset.arguments["sparsity"], "kernel_initializer": initializer}
    assert zoo.conv4_mpt(weights=preset.name, **same)
    with pytest.raises(ValueError, match="`kernel_initializer` must be left out"):
        zoo.conv4_mpt(weights=preset.name, kernel_initializer="he_normal")


def test_damaged_file_is_refused(tmp_path, monkeypatch):
    preset = PUBLISHED[0]
    data = bytearray(preset.path.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / preset.path.name).write_bytes(data)
    monkeypatch.setattr(presets, "folder", lambda: tmp_path)
    with pytest.raises(TicketError, match=preset.name):
        preset.model()


def test_preprocessing():
    preset = PUBLISHED[0]
    images = preset.golden_images()
    assert images.dtype == np.uint8 and images.std() > 50
    expected = (images / 255 - np.array(preset.mean)) / np.array(preset.std)
    assert preset.preprocess(images).dtype == np.float32
    np.testing.assert_allclose(preset.preprocess(images), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="images"):
        preset.preprocess(images[..., :2])
    with pytest.raises(ValueError, match="`images` must be numbers .* Received: complex128 of shape"):
        preset.preprocess(images.astype(complex))
    damaged = np.where(images == images[0, 0, 0, 0], np.nan, images)
    for wrong in (images / 255, preset.preprocess(images), images.astype("int32") + 1, images > 9, damaged):
        with pytest.warns(UserWarning, match="`images` must be pixels from 0 to 255"):
            preset.preprocess(wrong)


@pytest.fixture
def publishing(publish, scripts, tmp_path, monkeypatch):
    """A copy of the zoo, a run to publish, and a function that calls examples/recipes/publish.py there."""
    for folder in ("zoo", "run"):
        (tmp_path / folder).mkdir()
    (tmp_path / "zoo" / "presets.json").write_text("[]")
    monkeypatch.setattr(publish, "ZOO", tmp_path / "zoo")
    arguments = {"input_quantizer": "approx_sign", "pad_values": 1.0, "width": 0.06, "seed": 0}
    made = {"architecture": "conv2_mpt", "arguments": arguments, "recipe": "python", "epochs": 1}
    keras_mpt.save_ticket(zoo.conv2_mpt(**arguments), tmp_path / "run" / "ticket.mpt", provenance=made)
    (tmp_path / "run" / "log.csv").write_text("epoch,accuracy,val_accuracy\n0,0.1,0.25\n")
    data = small_cifar10(tmp_path / "images.npz")

    def call(*more):
        words = [tmp_path / "run", "--name=tiny", "--data=d", "--trained=t", f"--data_dir={data}", *more]
        monkeypatch.setattr(sys, "argv", ["publish.py", *map(str, words)])
        publish.main()

    return call


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.tensorflow_only
def test_publishing_writes_everything_or_nothing(publishing, tmp_path, monkeypatch, capsys):
    pytest.importorskip("larq_compute_engine")
    (tmp_path / "zoo" / "tiny.mpt").write_bytes(b"published before")
    before = contents(tmp_path)

    def fails(*args, **kwargs):
        raise ValueError("no conversion")

    with monkeypatch.context() as patch, pytest.raises(ValueError, match="no conversion"):
        patch.setattr(keras_mpt.convert, "to_lce", fails)  # the last file
        publishing()
    assert contents(tmp_path) == before
    with tempfile.TemporaryDirectory() as elsewhere:
        shutil.copy(tmp_path / "run" / "log.csv", elsewhere)
        for log in (pathlib.Path(elsewhere) / "log.csv", tmp_path / "no.csv"):
            with pytest.raises(SystemExit):
                publishing("--dense", log)
            assert f"--dense must be a log inside the repository, as examples/results has. Received: {log}" in (
                capsys.readouterr().err
            )
    assert contents(tmp_path) == before

    publishing("--dense", tmp_path / "run" / "log.csv")
    written = {path.name for path in (tmp_path / "zoo").iterdir()}
    names = {f"tiny{ending}" for ending in (".mpt", ".csv", ".png", ".md", ".tflite", "_lce.tflite")}
    assert written == {"presets.json", "README.md", *names}
    (preset,) = json.loads((tmp_path / "zoo" / "presets.json").read_text())
    assert preset["sha256"] == hashlib.sha256((tmp_path / "zoo" / "tiny.mpt").read_bytes()).hexdigest()
    assert preset["dense"] == {"accuracy": 0.25, "epochs": 1, "log": "../run/log.csv"}
    assert not list(tmp_path.glob(".publish*"))


@same_on_all_backends
def test_removing_a_preset(publish, tmp_path, monkeypatch):
    shutil.copytree(ROOT / "zoo", tmp_path / "zoo", ignore=shutil.ignore_patterns("*.tflite"))
    (tmp_path / "zoo" / "conv4_mpt11_s50.tflite").touch()
    monkeypatch.setattr(publish, "ZOO", tmp_path / "zoo")

    def remove(name):
        monkeypatch.setattr(sys, "argv", ["publish.py", "--remove", name])
        publish.main()
        entries = json.loads((tmp_path / "zoo" / "presets.json").read_text())
        table = (tmp_path / "zoo" / "README.md").read_text()
        names = [entry["name"] for entry in entries]
        assert name not in names and f"| [{name}]" not in table and all(f"| [{other}]" in table for other in names)
        assert not [*(tmp_path / "zoo").glob(f"{name}.*")]
        return {entry["name"]: entry["default"] for entry in entries}

    assert remove("conv4_mpt11_s50")["conv4_mpt32_s50"]
    assert remove("conv4_mpt32_s50")["conv4_mpt32_s80"]  # the best of the others is the default then
    with pytest.raises(SystemExit):
        remove("conv4_mpt32_s50")


@same_on_all_backends
@pytest.mark.parametrize("flags", [(), ("--default",)])
def test_a_default_that_is_published_again_stays_one(flags, publish, monkeypatch):
    import cifar10

    entry = {"architecture": "conv4_mpt", "accuracy": 0.5, "dense": None}
    presets = {name: {**entry, "name": name, "default": name == "a"} for name in "ab"}
    monkeypatch.setattr(cifar10, "load", lambda _: {"test": None})
    monkeypatch.setattr(publish, "publish", lambda *_: {**entry, "default": bool(flags)})
    monkeypatch.setattr(publish, "convert", lambda *_: {})
    options = argparse.Namespace(run="run", note=None, data_dir=None, dense=None, default=bool(flags), name="a")
    publish.change(presets, options, None)
    assert [presets[name]["default"] for name in "ab"] == [True, False]
    options.name = "b"
    publish.change(presets, options, None)
    assert [presets[name]["default"] for name in "ab"] == [not flags, bool(flags)]


@pytest.mark.slow
def test_wheel_holds_the_tickets(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if name.startswith("keras_mpt/zoo/tickets/") and ".py" in name]
        archive.extractall(tmp_path / "installed")
    code = """
import json, keras_mpt
presets = keras_mpt.zoo.list_presets()
model = presets[0].model()
print(json.dumps([keras_mpt.__file__, [preset.name for preset in presets]]))
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    file, names = json.loads(result.stdout.splitlines()[-1])
    assert file.startswith(str(tmp_path))
    assert names == [preset.name for preset in PUBLISHED]
