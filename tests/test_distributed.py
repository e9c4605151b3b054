"""Trainings on several devices are those on one: masks bit for bit, but for scores within rounding of the cut."""

import os
import pathlib
import re
import socket
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_mpt
from support.small_images import small_cifar10

pytestmark = pytest.mark.slow_with("jax", "torch")

BACKEND = keras.backend.backend()
TESTS = pathlib.Path(__file__).parent
EXAMPLES = TESTS.parent / "examples" / "recipes"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(TESTS.parent), "TF_CPP_MIN_LOG_LEVEL": "3"}
LIMIT = 600  # seconds; a process that waits for another one would wait for ever

on_tensorflow = pytest.mark.skipif(BACKEND != "tensorflow", reason="tf.distribute")
on_jax = pytest.mark.skipif(BACKEND != "jax", reason="keras.distribution")


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def run_together(commands, folder, expected=None):
    """Run commands at once, and fail with what they print unless all end in time, as expected: by default, well."""
    logs = [folder / f"output{i}.txt" for i in range(len(commands))]
    running = []
    for command, log in zip(commands, logs, strict=True):
        with log.open("w") as output:
            running.append(subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=ENVIRONMENT))
    try:
        codes = [process.wait(LIMIT) for process in running]
    except subprocess.TimeoutExpired:
        codes = "too slow"
    finally:
        for process in running:
            process.kill()
            process.wait()
    assert codes == (expected or [0] * len(commands)), f"{codes}:\n" + "\n".join(
        log.read_text()[-3000:] for log in logs
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a function that runs a scenario of distributed_training.py, once, and returns its folder."""
    folders = {}

    def run(scenario, network):
        if (scenario, network) not in folders:
            folder = tmp_path_factory.mktemp(f"{scenario}_{network}")
            command = [sys.executable, str(TESTS / "support" / "distributed_training.py"), scenario, str(folder)]
            command += ["--networks", network]
            if scenario == "processes":
                port = str(free_port())
                run_together([[*command, "--port", port, "--process", str(i)] for i in range(2)], folder)
            else:
                run_together([command], folder)
            folders[scenario, network] = folder
        return folders[scenario, network]

    return run


def slow(*parameters):
    return pytest.param(*parameters, marks=pytest.mark.slow)


WAYS = {"mirrored": ["mirrored"], "layouts": ["data_parallel", "model_parallel"], "processes": ["processes0"]}
if BACKEND == "tensorflow":
    CASES = [("mirrored", "tickets"), slow("mirrored", "synchronized_norm"), slow("mirrored", "jackpot")]
elif BACKEND == "jax":
    CASES = [("layouts", "tickets"), slow("layouts", "jackpot"), slow("layouts", "plain_norm")]
    CASES += [("processes", "tickets"), slow("processes", "jackpot"), slow("processes", "plain_norm")]
else:
    CASES = []


def read(folder, network, way):
    """Return the state after a training as a dict."""
    with np.load(folder / f"{network}_{way}.npz") as file:
        return dict(file)


def part(state, prefix):
    return {name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)}


def differing(first, second, prefix):
    """Return how many entries of the arrays with a prefix differ, and how many there are."""
    ours, theirs = part(first, prefix), part(second, prefix)
    assert ours and ours.keys() == theirs.keys()
    return sum(np.count_nonzero(ours[name] != theirs[name]) for name in ours), sum(x.size for x in ours.values())


@pytest.mark.slow
@pytest.mark.parametrize("scenario, network", CASES)
def test_training_is_that_of_one_device(trained, scenario, network):
    folder = trained(scenario, network)
    one = read(folder, network, "one")
    for way in WAYS[scenario]:
        many = read(folder, network, way)
        bits, size = differing(one, many, "mask/")
        moved, _ = differing({**many, **{f"mask/{k}": v for k, v in part(many, "before/").items()}}, many, "mask/")
        assert moved > min(100, size / 100), "nothing to compare"
        assert bits <= 2, "more than two scores within rounding of the cut"

        ours, theirs = part(one, "variable/"), part(many, "variable/")
        assert ours.keys() == theirs.keys()
        # Recycling goes by the ranks of all scores: where two are within rounding, two weights get each other's values
        other_weights = {name: ours[name] != theirs[name] for name in ours if name.endswith("frozen_kernel")}
        swapped = sum(map(np.count_nonzero, other_weights.values()))
        assert swapped <= 4
        for name in ours:
            if name.endswith("threshold"):  # bits of a score
                a, b = (x.view(np.float32) for x in (ours[name], theirs[name]))
                np.testing.assert_allclose(a, b, atol=1e-5, err_msg=f"{way} {name}")
            elif ours[name].dtype.kind in "iu" and "stored_mask" not in name:
                np.testing.assert_array_equal(ours[name], theirs[name], err_msg=f"{way} {name}")
            elif ours[name].dtype.kind == "f":
                layer = re.search(r"(conv1|conv2|wide|logits)", name)
                frozen = f"{network.split('_')[-1]}/{layer[0]}/frozen_kernel" if layer else None
                skip = other_weights.get(frozen, np.zeros(1, bool)) if ours[name].ndim > 1 else np.zeros(1, bool)
                worst = np.where(skip, 0, np.abs(ours[name] - theirs[name])).max()
                assert worst < 1e-5, f"{way} {name}: {worst}"
        for key in ("loss", "val_loss"):
            np.testing.assert_allclose(one[key], many[key], rtol=1e-5)
        np.testing.assert_array_equal(one["accuracy"], many["accuracy"])
        print(f"{way}, {network}: {bits} of {size} bits differ, {moved} moved, {swapped} weights recycled otherwise")


def replicas(state):
    """Return for each device of a process the arrays that it holds."""
    found = {}
    for name, array in part(state, "replica").items():
        number, _, name = name.partition("/")
        found.setdefault(int(number), {})[name] = array
    return [found[number] for number in sorted(found)]


@pytest.mark.slow
@pytest.mark.parametrize("scenario, network", CASES)
def test_all_replicas_are_equal(trained, scenario, network):
    if scenario == "processes":
        pytest.skip("each has one device: see test_all_processes_have_the_same_state")
    folder = trained(scenario, network)
    expected = {"mirrored": 2, "data_parallel": 2, "model_parallel": 4}
    for way in WAYS[scenario]:
        state = read(folder, network, way)
        devices = replicas(state)
        assert len(devices) == expected[way]
        for device in devices:
            for name, array in part(device, "mask/").items():
                whole = state[f"mask/{name}"]
                if way == "model_parallel" and name == "wide":
                    half = whole.shape[1] // 2
                    assert array.shape == (whole.shape[0], half)
                    assert any(np.array_equal(array, whole[:, columns]) for columns in (slice(half), slice(half, None)))
                else:
                    np.testing.assert_array_equal(array, whole)
        for name in devices[0]:
            if array_is_whole(way, name):
                assert all(np.array_equal(device[name], devices[0][name]) for device in devices)


def array_is_whole(way, name):
    return way != "model_parallel" or not name.endswith("/wide")


@on_jax
@pytest.mark.slow
@pytest.mark.parametrize("network", ["tickets", "jackpot", "plain_norm"])
def test_all_processes_have_the_same_state(trained, network):
    folder = trained("processes", network)
    first, second = (read(folder, network, f"processes{i}") for i in range(2))
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
    logs = [(folder / f"{network}_processes{i}.csv").read_text() for i in range(2)]
    assert logs[0] == logs[1]


@pytest.mark.parametrize("scenario, network", CASES)
def test_files_are_those_of_one_device(trained, scenario, network):
    folder = trained(scenario, network)
    images = images_of_a_batch()
    for way in WAYS[scenario]:
        state = read(folder, network, way)
        model, ticket = keras.models.load_model(folder / f"{network}_{way}.keras"), folder / f"{network}_{way}.mpt"
        saved = part(state, "variable/")  # in the order of the variables; a loaded model calls some of them otherwise
        for variable, array in zip([*model.variables, *model.optimizer.variables], saved.values(), strict=True):
            np.testing.assert_array_equal(variable, array, err_msg=variable.path)
        for loaded in (model, keras_mpt.load_ticket(ticket)):
            np.testing.assert_allclose(loaded(images), state["output"], rtol=1e-5, atol=1e-5)
            for layer in keras_mpt.models.mpt_layers(loaded):
                np.testing.assert_array_equal(layer.subnet_mask, state[f"mask/{layer.name}"])
    if scenario == "processes":
        assert not (folder / f"{network}_processes1.mpt").exists()


def images_of_a_batch():
    """Return the images that distributed_training.py computes outputs of."""
    random = np.random.default_rng(0)
    images, labels = random.normal(size=(64, 8, 8, 3)).astype("float32"), random.integers(0, 10, 64)
    return (images + labels[:, None, None, None] / 5).astype("float32")[:16]


@pytest.mark.slow
@on_tensorflow
def test_plain_batch_norm_of_mirrored_replicas_is_another_training(trained):
    """Each replica normalizes with the statistics of its own part; the states stay equal on all replicas."""
    folder = trained("mirrored", "plain_norm")
    one, many = (read(folder, "plain_norm", way) for way in ("one", "mirrored"))
    first, second = replicas(many)
    assert all(np.array_equal(first[name], second[name]) for name in first)
    print("mirrored, plain_norm: {} of {} bits differ".format(*differing(one, many, "mask/")))
    difference = np.abs(one["loss"] - many["loss"]).max()
    assert 1e-3 < difference < 0.3


def example(data, folder, *flags):
    flags = [*flags, f"--data_dir={data}", f"--output_dir={folder}", "--network=conv2", "--width=0.0625"]
    flags += ["--batch_size=16", "--seed=3", "--weight_decay=1e-3", "--recycle_every=1"]
    return [sys.executable, str(EXAMPLES / "train_distributed.py"), *flags, "--iterand_rate=0.1", "--recycle_rate=0.1"]


def final_state(folder):
    """Return masks and other arrays of an example's last checkpoint, and its log."""
    model = keras.models.load_model(folder / "checkpoint.keras")
    masks = [np.array(keras.ops.convert_to_numpy(m.subnet_mask)) for m in keras_mpt.models.mpt_layers(model)]
    variables = [keras.ops.convert_to_numpy(v) for v in [*model.weights, *model.optimizer.variables]]
    return masks, variables, (folder / "log.csv").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy, more",
    [
        pytest.param("mirrored", [], marks=on_tensorflow),
        pytest.param("mirrored", ["--synchronized_batch_norm", "--binary_activations"], marks=on_tensorflow),
        pytest.param("data_parallel", [], marks=on_jax),
        pytest.param("model_parallel", [], marks=on_jax),
    ],
)
def test_the_example_on_two_devices_is_that_on_one(strategy, more, tmp_path):
    data = small_cifar10(tmp_path / "images.npz")
    for devices in (1, 2):
        flags = [f"--strategy={strategy}", "--epochs=2", f"--virtual_devices={devices}", *more]
        flags += [f"--model_devices={devices}"] if strategy == "model_parallel" else []
        run_together([example(data, tmp_path / f"devices{devices}", *flags)], tmp_path)
        assert keras_mpt.load_ticket(tmp_path / f"devices{devices}" / "ticket.mpt").built
    (one, *_), (two, *_) = (final_state(tmp_path / f"devices{devices}") for devices in (1, 2))
    if more:  # inputs within rounding of zero have one sign or the other
        model = keras.models.load_model(tmp_path / "devices2" / "checkpoint.keras")
        norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
        assert norms and all(layer.synchronized for layer in norms)
    else:
        assert sum(np.count_nonzero(a != b) for a, b in zip(one, two, strict=True)) <= 2


DIES = """
import os, runpy, signal, sys
checkpoint, *sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
import cifar10
usual = cifar10.TrainingBatches.__getitem__
def get(self, step):
    if step == 3 and os.path.exists(checkpoint):
        os.kill(os.getpid(), signal.SIGKILL)
    return usual(self, step)
cifar10.TrainingBatches.__getitem__ = get
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@on_jax
@pytest.mark.slow
def test_two_processes_resume_after_one_was_killed_within_an_epoch(tmp_path):
    data = small_cifar10(tmp_path / "images.npz")

    def commands(folder, *more):
        coordinator = f"--coordinator=127.0.0.1:{free_port()}"
        flags = ["--strategy=data_parallel", "--processes=2", coordinator, "--virtual_devices=1", "--epochs=3", *more]
        return [example(data, folder, *flags, f"--process_id={i}") for i in range(2)]

    run_together(commands(tmp_path / "whole"), tmp_path)

    killed = tmp_path / "killed"
    first, (python, *second) = commands(killed)
    log = tmp_path / "survivor.txt"
    with log.open("w") as output:
        survivor = subprocess.Popen(first, stdout=output, stderr=subprocess.STDOUT, env=ENVIRONMENT)
    try:
        run_together([[python, "-c", DIES, str(killed / "checkpoint.keras"), *second]], tmp_path, expected=[-9])
        assert survivor.wait(LIMIT) != 0  # nobody answers any more
    finally:
        survivor.kill()
    rows = (killed / "log.csv").read_text().splitlines()
    assert len(rows) in (2, 3), log.read_text()[-3000:]  # one or two of three epochs, under the header
    assert not (killed / "ticket.mpt").exists()

    run_together(commands(killed), tmp_path)
    (masks, variables, rows), (others, their_variables, their_rows) = (
        final_state(killed),
        final_state(tmp_path / "whole"),
    )
    assert rows == their_rows
    for ours, theirs in zip([*masks, *variables], [*others, *their_variables], strict=True):
        np.testing.assert_array_equal(ours, theirs)
