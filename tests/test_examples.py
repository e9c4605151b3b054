"""The training example: data, resuming, backends."""

import ast
import dataclasses
import importlib.util
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
import types
import warnings

import keras
import numpy as np
import pytest
from absl import app
from absl.flags import FLAGS

import keras_mpt
from support.small_images import small_cifar10

pytestmark = pytest.mark.slow_with("jax", "torch")

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples" / "recipes"
SMALL = ["--network=conv2", "--width=0.06", "--batch_size=16", "--seed=3", "--weight_decay=1e-3"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small_cifar10(tmp_path_factory.mktemp("data") / "images.npz")


def command(data, folder, *flags):
    return [sys.executable, "train.py", f"--data_dir={data}", f"--output_dir={folder}", *SMALL, *flags]


def train(data, folder, *flags, **environment):
    environment = {**os.environ, **environment}
    result = subprocess.run(
        command(data, folder, *flags), cwd=EXAMPLES, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result


def assert_same_run(first, second):
    assert (first / "log.csv").read_text() == (second / "log.csv").read_text()
    ours, theirs = (keras.models.load_model(folder / "checkpoint.keras") for folder in (first, second))
    assert keras_mpt.models.mpt_layers(ours)
    assert int(ours.optimizer.iterations) == int(theirs.optimizer.iterations)
    states = ([*model.weights, *model.optimizer.variables] for model in (ours, theirs))
    for a, b in zip(*states, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(a), keras.ops.convert_to_numpy(b), err_msg=a.path)


@pytest.mark.slow
def test_resuming_after_a_kill_reproduces_the_uninterrupted_run(data, tmp_path):
    flags = ("--epochs=4", "--deterministic", "--iterand_rate=0.1", "--recycle_rate=0.1", "--recycle_every=1")
    train(data, tmp_path / "whole", *flags)

    killed = tmp_path / "killed"
    process = subprocess.Popen(
        command(data, killed, *flags), cwd=EXAMPLES, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.time() + 300
    while not (killed / "checkpoint.keras").exists() and process.poll() is None and time.time() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert len((killed / "log.csv").read_text().splitlines()) < 5, "killed too late to be a test"

    train(data, killed, *flags)
    assert_same_run(tmp_path / "whole", killed)


def _long(name):
    return pytest.param(name, marks=pytest.mark.slow)


@pytest.mark.tensorflow_only  # phone.py is; the others take their time
@pytest.mark.parametrize(
    "name", ["own_model", *map(_long, ("jackpot", "recycling", "phone", "vit", "keyword_spotting"))]
)
def test_scripts_of_digits_and_phones(name, monkeypatch, capsys):
    specification = importlib.util.spec_from_file_location(name, EXAMPLES.parent / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    monkeypatch.setattr(module, "EPOCHS", 1, raising=False)
    module.main()
    printed = capsys.readouterr().out
    expected = {
        "own_model": [r"Test accuracy: [\d.]+%", r"The file of 15,\d{3} bytes gives the same logits"],
        "jackpot": [r"all weights +[\d.]+%\nthe largest tenth +[\d.]+%\nthe tenth that was found +[\d.]+%\n"],
        "recycling": [rf"\n{name}: [\d.]+% of the test images.*: [\d.]+%\n" for name in ("plain", "recycling")],
        "vit": [r"\ndense   [\d.]+%\nticket  [\d.]+%\nThe ticket's file: 2\d,\d{3} bytes"],
        "keyword_spotting": [r"\ndense   [\d.]+%\nticket  [\d.]+%\nThe ticket's file: \d+,\d{3} bytes"],
        "phone": [r"Largest difference to Keras: [\d.]+(e-\d+)?\n"],
    }
    for pattern in expected[name]:
        assert re.search(pattern, printed), printed


def evaluate(data, *flags):
    flags = [sys.executable, "evaluate.py", f"--data_dir={data}", *flags]
    return subprocess.run(flags, cwd=EXAMPLES, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.tensorflow_only
def test_evaluating_presets_and_their_phone_files(data):
    pytest.importorskip("larq_compute_engine")
    runtimes = ("keras", "lce", "tflite")
    found = {runtime: evaluate(data, "--weights=all", f"--runtime={runtime}").stdout for runtime in runtimes}
    presets = keras_mpt.zoo.list_presets()
    assert found["keras"].count("test images (tensorflow)") == len(presets)
    for preset in presets:
        share = found["keras"].split(f"{preset.name}: ")[1].split(" (")[0]
        for runtime in ("lce", "tflite"):
            if "file" in preset.converted.get(runtime, {}):
                assert f"{preset.converted[runtime]['file']}: {share} ({runtime})" in found[runtime]


@pytest.mark.tensorflow_only
def test_evaluating_a_file_that_is_not_the_published_one(scripts, monkeypatch, tmp_path):
    import evaluate

    preset = next(p for p in keras_mpt.zoo.list_presets() if "lce" in p.converted)
    monkeypatch.setattr(keras_mpt.zoo.presets, "folder", lambda: tmp_path)
    (tmp_path / preset.converted["lce"]["file"]).write_bytes(b"another")
    with pytest.raises(app.UsageError, match="is not the file that was published"):
        evaluate.contestants(preset.name, "lce")
    (tmp_path / f"{preset.name}.mpt").write_bytes(b"another")
    with pytest.raises(app.UsageError, match="is not the file that was published"):
        evaluate.contestants(preset.name, "keras")


def test_evaluating_what_is_not_there(scripts):
    import evaluate

    floats = next(p.name for p in keras_mpt.zoo.list_presets() if p.arguments["input_quantizer"] is None)
    with pytest.raises(app.UsageError, match="No file for lce is published"):
        evaluate.contestants(floats, "lce")
    with pytest.raises(app.UsageError, match="--runtime tflite runs no such file. Received: --weights x.mpt"):
        evaluate.contestants("x.mpt", "tflite")


@pytest.mark.slow
@pytest.mark.tensorflow_only
def test_the_recipe_of_a_preset_gives_the_same_ticket_again(data, tmp_path):
    train(data, tmp_path / "first", "--epochs=2")
    ticket = keras_mpt.tickets.Ticket.read(shutil.copy(tmp_path / "first" / "ticket.mpt", tmp_path / "small.mpt"))
    entry = dataclasses.asdict(keras_mpt.zoo.list_presets()[0])
    entry |= {"name": "small", "accuracy": 0.5, "recipe": ticket.provenance["recipe"]}
    (tmp_path / "presets.json").write_text(json.dumps([entry]))
    code = """
import pathlib, sys
from absl import app
from keras_mpt.zoo import presets
folder = pathlib.Path(sys.argv.pop(1))
presets.folder = lambda: folder
import reproduce
app.run(reproduce.main)
"""
    flags = ["--weights=small", f"--data_dir={data}", f"--output_dir={tmp_path / 'second'}"]
    again = [sys.executable, "-c", code, str(tmp_path), *flags]
    printed = subprocess.run(again, cwd=EXAMPLES, capture_output=True, text=True, check=True).stdout
    assert "Jaccard index of the masks: 1.0000" in printed
    assert_same_run(tmp_path / "first", tmp_path / "second")


@pytest.mark.slow
@pytest.mark.tensorflow_only
def test_a_published_recipe_gives_the_same_again(data, tmp_path):
    """Conv-4 as it was published, two steps of it: a batch of 48 of the 96 images that there are here."""
    recipe = keras_mpt.zoo.get_preset("conv4_mpt32_s80").recipe.split()[1:]
    for folder in (tmp_path / "first", tmp_path / "second"):
        flags = [f"--data_dir={data}", f"--output_dir={folder}", "--batch_size=48", "--stop_after=1"]
        subprocess.run([sys.executable, *recipe, *flags], cwd=EXAMPLES.parents[1], capture_output=True, check=True)
    assert_same_run(tmp_path / "first", tmp_path / "second")


@pytest.fixture
def run_here(data, scripts, monkeypatch):
    """Return a function that runs train.py in this process, which is much quicker than another one."""
    import train

    def run(folder, *more):
        given = ["train", f"--data_dir={data}", f"--output_dir={folder}", *SMALL, *more]
        monkeypatch.setattr(sys, "argv", given)  # the flags are those of the module of this name
        FLAGS.unparse_flags()
        FLAGS(given)
        train.main(None)

    return run


def test_a_training_goes_on_with_its_own_flags_only(run_here, tmp_path):
    run_here(tmp_path, "--epochs=2", "--stop_after=1")
    assert not (tmp_path / "ticket.mpt").exists()  # it would be one of two epochs
    written = (tmp_path / "flags.json").read_text()
    for changed, message in {
        ("--epochs=2", "--sparsity=0.9"): "--sparsity 0.9 instead of 0.5$",
        ("--epochs=4",): "--epochs 4 instead of 2$",
        ("--epochs=2", "--dense", "--held_out=8"): "--dense True instead of False, --held_out 8 instead of None$",
    }.items():
        with pytest.raises(app.UsageError, match=f"(?s)started with. Received: {message}"):
            run_here(tmp_path, *changed)
        assert (tmp_path / "flags.json").read_text() == written and not (tmp_path / "ticket.mpt").exists()
    older = {name: value for name, value in json.loads(written).items() if "recycle" not in name}
    (tmp_path / "flags.json").write_text(json.dumps(older))  # as before there was this flag
    run_here(tmp_path, "--epochs=2")
    provenance = keras_mpt.tickets.Ticket.read(tmp_path / "ticket.mpt").provenance
    assert provenance["epochs"] == 2 and "--output_dir" not in provenance["recipe"]
    assert keras_mpt.zoo.conv2_mpt(weights=tmp_path / "ticket.mpt").name == provenance["architecture"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--epochs=2", "--warmup_epochs=2"), "--warmup_epochs must be fewer than --epochs. Received: 2 of 2"),
        (("--train_examples=15",), "--batch_size must be .*images. Received: 16, and 15 images"),
    ],
    ids=str,
)
def test_flags_that_make_no_sense(given, message, run_here, tmp_path):
    with pytest.raises(app.UsageError, match=message):
        run_here(tmp_path, *given)


@pytest.mark.parametrize(
    ("given", "rate"),
    [((), 0.1), (("--binary_activations",), 0.001), (("--binary_activations", "--learning_rate=0.1"), 0.1)],
)
def test_learning_rate(given, rate, data, scripts, monkeypatch):
    import train

    FLAGS.unparse_flags()
    FLAGS(["train", f"--data_dir={data}", "--output_dir=unused", *SMALL, *given])
    assert float(train.build_model(steps=10).optimizer.learning_rate) == pytest.approx(rate)


@pytest.mark.slow
def test_a_finished_run_is_not_overwritten(run_here, tmp_path):
    flags = ("--epochs=1", "--binary_activations", "--bfloat16")
    run_here(tmp_path, *flags)
    names = ("log.csv", "checkpoint.keras", "flags.json")
    before = [(tmp_path / name).read_bytes() for name in names]
    run_here(tmp_path, *flags)
    assert [(tmp_path / name).read_bytes() for name in names] == before
    trained = keras.models.load_model(tmp_path / "checkpoint.keras")
    found = keras_mpt.load_ticket(tmp_path / "ticket.mpt")
    policies = [model.get_layer("logits").dtype_policy.name for model in (trained, found)]
    assert policies == ["mixed_bfloat16", "float32"]


@pytest.mark.skipif(sys.platform == "win32", reason="locks files in another way")
def test_two_trainings_in_one_folder(run_here, scripts, tmp_path):
    import training

    with training.in_folder(tmp_path), pytest.raises(app.UsageError, match="--output_dir must be of one training"):
        run_here(tmp_path, "--epochs=1")
    assert [path.name for path in tmp_path.iterdir() if path.name != "flags.json"] == [".lock"]


@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="is about the other backends")
def test_training_from_an_npz_file_needs_no_tensorflow(data, tmp_path):
    blocked = tmp_path / "blocked"
    for package in ("tensorflow", "tensorflow_datasets"):
        (blocked / package).mkdir(parents=True)
        (blocked / package / "__init__.py").write_text("raise ImportError('not installed')")
    path = os.pathsep.join([str(blocked), str(EXAMPLES.parent)])
    train(data, tmp_path / "run", "--epochs=1", PYTHONPATH=path)


def test_dense_network_is_trained_by_the_same_command(run_here, tmp_path):
    run_here(tmp_path, "--epochs=1", "--dense", "--learning_rate=0.01", "--bfloat16")
    model = keras.models.load_model(tmp_path / "checkpoint.keras")
    assert all(type(layer).__module__.startswith("keras.") for layer in model.layers)
    assert model.get_layer("logits").dtype_policy.name == "mixed_bfloat16"


@pytest.mark.slow
@pytest.mark.tensorflow_only  # for its five trainings, none of which depends on the backend
def test_jackpots_of_a_dense_network(data, tmp_path):
    train(data, tmp_path / "dense", "--epochs=1", "--dense", "--learning_rate=0.01")
    flags = [f"--data_dir={data}", f"--base={tmp_path / 'dense' / 'checkpoint.keras'}", f"--output_dir={tmp_path}"]
    flags += ["--batch_size=16", "--epochs=2", "--sparsities=0.9", "--criteria_batches=2", "--learning_rate=0.02"]
    flags += ["--seeds=1", "--image_size=32"]

    def called(*more):
        command = [sys.executable, "jackpot_study.py", *flags, *more]
        return subprocess.run(command, cwd=EXAMPLES, capture_output=True, text=True, check=False)

    def jackpot(*more):
        result = called(*more)
        assert result.returncode == 0, result.stderr[-3000:]
        return result.stdout

    assert "Jaccard" not in jackpot("--stop_after=1", "--methods=jackpot")
    assert "--rates uniform instead of global" in called("--rates=uniform").stderr
    assert len((tmp_path / "jackpot_0.9_0" / "log.csv").read_text().splitlines()) == 2
    tables = jackpot()
    rows = {row.split("|")[1].strip(): row.split("|")[2:-1] for row in tables.splitlines() if row.startswith("| ")}
    assert float(rows["finetuned"][0]) >= 0 and float(rows["magnitude"][0]) >= 0
    assert [len(rows[name]) for name in ("jackpot", "unrestricted", "random")] == [4, 4, 4]  # overlaps
    assert float(rows["jackpot"][0]) > float(rows["random"][0])  # with the mask of the magnitudes
    assert (tmp_path / "accuracy.png").exists()
    written = [row.split(",") for row in (tmp_path / "accuracy.csv").read_text().splitlines()[1:]]
    names = sorted(row[0] for row in written)
    assert names == sorted(["magnitude", *2 * ["jackpot", "unrestricted", "random", "finetuned", "binary"]])
    assert [len(row) for row in written] == [5 if row[0] == "magnitude" else 6 for row in written]
    written = [row.split(",")[3] for row in (tmp_path / "overlap.csv").read_text().splitlines()[1:]]
    assert written == [cell.strip() for name in ("jackpot", "unrestricted", "random") for cell in rows[name]]

    base = keras.models.load_model(tmp_path / "dense" / "checkpoint.keras")
    found = keras_mpt.load_ticket(tmp_path / "jackpot_0.9_0" / "ticket.mpt", base=base)
    for layer in keras_mpt.models.mpt_layers(found):
        weights, kernel = (keras.ops.convert_to_numpy(x) for x in (base.get_layer(layer.name).kernel, layer.kernel))
        np.testing.assert_array_equal(kernel[kernel != 0], weights[kernel != 0])
    path = tmp_path / "binary_0.9_0" / "ticket.mpt"
    assert f"The binary jackpot at 0.9 is a file of {path.stat().st_size:,} bytes." in tables
    for layer in keras_mpt.models.mpt_layers(keras_mpt.load_ticket(path)):
        weights, kernel = (keras.ops.convert_to_numpy(x) for x in (base.get_layer(layer.name).kernel, layer.kernel))
        np.testing.assert_array_equal(np.sign(kernel)[kernel != 0], np.sign(weights)[kernel != 0])
    tuned = keras.models.load_model(tmp_path / "finetuned_0.9_0" / "checkpoint.keras")
    before = keras_mpt.analysis.masks(tmp_path / "magnitude_0.9_0" / "ticket.mpt", base)
    for path, mask in before.items():
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(tuned.get_layer(path).kernel) != 0, mask)


@pytest.mark.slow
@pytest.mark.tensorflow_only  # does not depend on the backend
def test_the_study_of_jackpots_trains_the_network_that_its_page_names():
    code = (
        "import pathlib, jackpot_study as study\n"
        "study.FLAGS(['study', '--output_dir=x', '--data_dir=DIR'])\n"
        "print(*study.base_command(pathlib.Path('runs/base')))\n"
        "print(study.skipped(), study.FLAGS.sparsities, study.FLAGS.epochs, study.FLAGS.seeds)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=EXAMPLES, capture_output=True, text=True, check=True)
    command, rest = run.stdout.splitlines()[-2:]
    ours = dict(re.findall(r"--(\w+)=?(\S*)", command))
    page = (EXAMPLES.parents[1] / "docs" / "jackpots.md").read_text()
    page = page[page.index("python examples/recipes/whitened_conv6.py") :]
    theirs = dict(re.findall(r"--(\w+)(?: ([^-\s\\]\S*))?", page[: page.index("```")]))
    assert ours.pop("seed") == "0" and ours.pop("data_dir").endswith("DIR") and theirs.pop("data_dir") == "DIR"
    assert ours == theirs and rest == "['stem', 'logits'] ['0.95'] 15 3"


def test_batches_are_functions_of_seed_epoch_and_step(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    import cifar10

    images = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(40, dtype=np.int32)
    whole = cifar10.TrainingBatches(images, labels, 8, seed=1)
    whole.begin(1)
    resumed = cifar10.TrainingBatches(images, labels, 8, seed=1, first_epoch=1)
    assert len(whole) == 5
    seen = []
    for step in (3, 0, 4, 1, 2):
        for ours, theirs in zip(whole[step], resumed[step], strict=True):
            np.testing.assert_array_equal(ours, theirs)
        seen.extend(whole[step][1])
    assert sorted(seen) == list(range(40))
    assert not np.array_equal(whole[0][1], cifar10.TrainingBatches(images, labels, 8, seed=2, first_epoch=1)[0][1])


def test_each_epoch_has_its_batches(scripts):
    """Keras on PyTorch takes one batch more before the first epoch."""
    from batches import BeginEpochs, EpochBatches

    class Noted(EpochBatches):
        def __len__(self):
            return 2

        def begin(self, epoch):
            self.epoch = epoch

        def __getitem__(self, step):
            seen.append((self.epoch, step))
            return np.zeros((1, 3), "float32"), np.zeros((1, 1), "float32")

    model, batches, seen = keras.Sequential([keras.layers.Dense(1)]), Noted(), []
    batches.begin(0)
    model.compile("sgd", "mse")
    for first, last in ((0, 3), (3, 4)):
        model.fit(batches, initial_epoch=first, epochs=last, shuffle=False, callbacks=[BeginEpochs(batches)], verbose=0)
    assert list(dict.fromkeys(seen)) == [(epoch, step) for epoch in range(4) for step in range(2)]


def test_held_out_images_are_the_last_ones_and_not_trained_on(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    import cifar10

    data = {"train": (np.arange(10), np.arange(10) % 3), "test": (np.arange(50, 54), np.zeros(4))}
    split = cifar10.hold_out(data, 3)
    assert [array.tolist() for array in split["train"]] == [[*range(7)], [0, 1, 2, 0, 1, 2, 0]]
    assert [array.tolist() for array in split["test"]] == [[7, 8, 9], [1, 2, 0]]
    for count in (0, 10, 11):
        with pytest.raises(ValueError, match=f"held out, not all. Received: {count}"):
            cifar10.hold_out(data, count)


def test_crops_and_flips_come_from_the_image(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    import cifar10

    image = np.random.default_rng(0).integers(1, 256, (32, 32, 3), dtype=np.uint8)
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)))
    crops = [padded[y : y + 32, x : x + 32] for y in range(9) for x in range(9)]
    possible = {cifar10.normalize(view).tobytes() for crop in crops for view in (crop, crop[:, ::-1])}
    batches = cifar10.TrainingBatches(np.stack([image] * 64), np.zeros(64, np.int32), 64, seed=0)
    views = {view.tobytes() for view in batches[0][0]}
    assert views <= possible
    assert len(views) > 30


def train_imagenet(folder, *flags):
    pictures = ["--data=synthetic", f"--data_dir={folder}", "--batch_size=4", "--width=0.06", "--warmup_epochs=1"]
    return [sys.executable, "train_imagenet.py", *pictures, f"--output_dir={folder / 'run'}", "--epochs=2", *flags]


@pytest.mark.slow
@pytest.mark.tensorflow_only  # for its time
@pytest.mark.parametrize("network", ["resnet50", "wide_resnet50"])
def test_imagenet_recipe_of_other_networks(network, tmp_path):
    flags = f"--network={network}", "--synthetic_images=8"
    result = subprocess.run(train_imagenet(tmp_path, *flags), cwd=EXAMPLES, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    model = keras.models.load_model(tmp_path / "run" / "checkpoint.keras")
    assert model.optimizer.momentum == 0.875
    frozen = np.abs(model.get_layer("stage1_block1_conv2").frozen_kernel)
    assert np.unique(frozen).size == 1  # signed constants
    assert keras_mpt.load_ticket(tmp_path / "run" / "ticket.mpt").output_shape == (None, 1000)
    assert json.loads((tmp_path / "run" / "flags.json").read_text())["bfloat16"] in (True, False)


@pytest.mark.slow
@pytest.mark.tensorflow_only  # for its time
def test_imagenet_recipe_on_pictures_of_its_format(tmp_path):
    """From a kill in the first epoch on, which leaves a cache that is not complete."""
    cache = tmp_path / "cache"
    flags = ["--network=wide_resnet34", "--synthetic_images=64", f"--cache_dir={cache}"]
    process = subprocess.Popen(train_imagenet(tmp_path, *flags), cwd=EXAMPLES, stdout=subprocess.DEVNULL)
    deadline = time.time() + 300
    while not list(cache.glob("train*.lockfile")) and process.poll() is None and time.time() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert list(cache.glob("train*.lockfile")) and not (tmp_path / "run" / "checkpoint.keras").exists()

    def train(*more):
        command = train_imagenet(tmp_path, *flags, *more)
        result = subprocess.run(command, cwd=EXAMPLES, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr[-3000:]

    train("--stop_after=1")
    assert not (tmp_path / "run" / "ticket.mpt").exists()
    train()  # goes on
    assert len((tmp_path / "run" / "log.csv").read_text().splitlines()) == 3
    epochs = [row.split(",") for row in (tmp_path / "run" / "speed.csv").read_text().splitlines()]
    assert [row[0] for row in epochs] == ["epoch", "0", "1"] and all(float(row[2]) > 0 for row in epochs[1:])
    assert [*cache.glob("train*")] and [*(tmp_path / "imagenet2012").glob("*/*.tfrecord*")]
    ticket = keras_mpt.load_ticket(tmp_path / "run" / "ticket.mpt")
    assert ticket.output_shape == (None, 1000)
    assert keras_mpt.zoo.wide_resnet34_mpt(weights=tmp_path / "run" / "ticket.mpt").output_shape == (None, 1000)
    model = keras.models.load_model(tmp_path / "run" / "checkpoint.keras")
    assert model.loss.label_smoothing == 0.1 and model.optimizer.name == "adam"
    assert model.get_layer("stage1_block1_conv1").get_config()["kernel_initializer"]["config"]["scale_fan"] is True
    assert model.get_layer("norm1").scale
    assert model.get_layer("logits").dtype_policy.name == "mixed_bfloat16"


@pytest.mark.tensorflow_only
def test_pictures_of_imagenet(tmp_path, monkeypatch):
    """The same pictures for all, whole batches for training, and the parts of several processes make up the whole."""
    monkeypatch.syspath_prepend(EXAMPLES)
    import imagenet

    with pytest.raises(ValueError, match="data_dir"):
        imagenet.load(tmp_path, imagenet.normalize, 4, seed=0)
    imagenet.write_synthetic(tmp_path, 10, 6)

    def read(batches):
        images, labels = zip(*((np.array(x), np.array(y)) for x, y in batches), strict=True)
        return np.concatenate(images), np.concatenate(labels)

    batches, validation = imagenet.load(tmp_path, imagenet.normalize, 4, seed=0)
    images, labels = read(batches(0))
    assert len(batches(0)) == 2 and images.shape == (8, 224, 224, 3) and len(set(labels)) > 5
    assert np.abs(images).max() < 3 and 0.3 < images.std() < 3
    again, _ = read(imagenet.load(tmp_path, imagenet.normalize, 4, seed=0)[0](0))
    other, _ = read(imagenet.load(tmp_path, imagenet.normalize, 4, seed=1)[0](0))
    assert not np.array_equal(images, other)
    np.testing.assert_array_equal(images, again)
    assert not np.array_equal(images, read(batches(1))[0])
    whole, _ = read(validation["validation_data"])
    assert len(whole) == 6
    halves = [
        read(imagenet.load(tmp_path, imagenet.normalize, 4, seed=0, part=i, parts=2)[1]["validation_data"])[0]
        for i in range(2)
    ]
    np.testing.assert_array_equal(np.stack(halves, axis=1).reshape(whole.shape), whole)


@pytest.mark.parametrize(
    ("flags", "given", "policy", "warned"),
    [
        ("avx2 avx512f", None, "float32", False),
        ("avx2 avx512f", True, "mixed_bfloat16", True),
        ("avx2 avx512f", False, "float32", False),
        ("avx2 avx512_bf16", None, "mixed_bfloat16", False),
        ("avx2 avx512_bf16", True, "mixed_bfloat16", False),
        ("asimd bf16", None, "mixed_bfloat16", False),
        (None, None, "mixed_bfloat16", False),
    ],
)
def test_bfloat16_where_it_is_not_emulated(flags, given, policy, warned, scripts, monkeypatch, tmp_path):
    import backend

    if backend._on_accelerator():
        pytest.skip("accelerators have bfloat16")
    path = tmp_path / "cpuinfo"
    if flags is not None:
        path.write_text(f"model name\t: Some CPU\nflags\t\t: {flags}\n")
    monkeypatch.setattr(backend, "_CPUINFO", path)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        assert backend.dtype_policy(given) == policy
    assert [("emulates" in str(warning.message)) for warning in found] == [True] * warned


@pytest.mark.parametrize("flags", ["avx2", "avx2 avx512_bf16"])
def test_a_training_goes_on_as_it_began_without_the_flag(flags, scripts, monkeypatch, tmp_path):
    """`--bfloat16` was on by default: its default, now that of the processor, is written to flags.json."""
    import backend

    if backend._on_accelerator():
        pytest.skip("accelerators have bfloat16")
    (tmp_path / "cpuinfo").write_text(f"flags\t\t: {flags}\n")
    monkeypatch.setattr(backend, "_CPUINFO", tmp_path / "cpuinfo")
    for given, expected in [(None, "bf16" in flags), (True, True), (False, False)]:
        values = types.SimpleNamespace(bfloat16=given)
        backend.choose_bfloat16(values)
        assert values.bfloat16 is expected


@pytest.mark.tensorflow_only
def test_scripts_switch_onednn_on():
    """TensorFlow leaves it off on AMD processors without AVX-512."""
    code = "import train\nfrom tensorflow.python.util import _pywrap_util_port as port\nprint(port.IsMklEnabled())"
    environment = {name: value for name, value in os.environ.items() if name != "TF_ENABLE_ONEDNN_OPTS"}
    found = subprocess.run([sys.executable, "-c", code], cwd=EXAMPLES, env=environment, capture_output=True, text=True)
    assert found.stdout.split() == ["True"], found.stderr


@pytest.mark.parametrize("script", [p.stem for p in EXAMPLES.glob("*.py") if "\nimport keras\n" in p.read_text()])
def test_scripts_set_up_the_backend_before_keras_is_loaded(script):
    code = (EXAMPLES / f"{script}.py").read_text()
    imports = [node.names[0].name for node in ast.parse(code).body if isinstance(node, ast.Import)]
    own = [name for name in imports if name not in sys.stdlib_module_names]
    assert own[0] == "backend" or "app.run(" not in code  # a module that scripts import
