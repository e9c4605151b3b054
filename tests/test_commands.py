"""The command line: arguments are explained, presets go where paths go, the terminal shows our own lines only."""

import argparse
import io
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_mpt
from keras_mpt import __main__ as command_line
from keras_mpt import terminal, zoo
from keras_mpt.__main__ import main
from keras_mpt.files import check_folder, replacing

pytestmark = pytest.mark.slow_with("jax", "torch")

ROOT = pathlib.Path(__file__).resolve().parent.parent
PRESET = "conv4_mpt32_s80"


def test_every_argument_is_explained():
    parser = command_line._parser()
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    assert {"list", "inspect", "convert", "import", "evaluate"} <= set(commands.choices)
    for name, command in {"": parser, **commands.choices}.items():
        assert name == "" or command.description
        for action in command._actions:
            assert action is commands or action.help, f"keras-mpt {name}: {action.dest} is not explained"


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert not stop.value.code
    assert f"keras {keras.__version__}, backend {keras.backend.backend()}" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["no.mpt", "conv4_mpt32_s5", "hf://no"])
def test_errors_call_the_ticket_as_the_usage_does(name, capsys):
    assert main(["inspect", name]) == 1
    assert capsys.readouterr().err.startswith("keras-mpt: error: `TICKET` must be ")


def listed(capsys, *options):
    assert main(["list", *options]) == 0
    return [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]


def test_the_list_and_its_filters(capsys):
    presets = zoo.list_presets()
    names = listed(capsys)
    assert sorted(names) == sorted(preset.name for preset in presets)
    accuracies = {preset.name: preset.accuracy for preset in presets}
    assert [accuracies[name] for name in names] == sorted(accuracies.values(), reverse=True)
    binary = {preset.name for preset in presets if preset.arguments.get("input_quantizer")}
    assert set(listed(capsys, "--activations", "binary")) == binary
    assert set(listed(capsys, "--activations", "float")) == set(names) - binary
    small = {preset.name for preset in presets if preset.path.stat().st_size <= 306_000}
    assert set(listed(capsys, "--max_bytes", "306000")) == small and small != set(names)
    assert set(listed(capsys, "--min_accuracy", "0.77")) == {n for n, a in accuracies.items() if a >= 0.77}
    assert set(listed(capsys, "--architecture", "conv4_mpt")) == {n for n in names if n.startswith("conv4")}
    assert main(["list", "--min_accuracy", "1"]) == 0
    assert "No published ticket matches" in capsys.readouterr().out
    assert main(["list", "--architecture", "conv5"]) == 1
    assert "must be one of keras_mpt.zoo" in capsys.readouterr().err


def test_a_preset_by_its_name(capsys, tmp_path, monkeypatch):
    assert main(["inspect", PRESET]) == 0
    assert f'Ticket "{PRESET}.mpt"' in capsys.readouterr().out
    assert main(["inspect", PRESET[:-1]]) == 1
    assert f"Did you mean '{PRESET}'? Received: '{PRESET[:-1]}'" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    pathlib.Path(PRESET).write_bytes(b"a file of this name comes first")
    assert main(["inspect", PRESET]) == 1
    assert "is not a ticket file" in capsys.readouterr().err


@pytest.fixture
def images(tmp_path):
    """Golden images of a preset, with the labels that its golden logits say, but for one."""
    preset = zoo.get_preset(PRESET)
    labels = np.argmax(preset.golden, axis=1)
    labels[0] = (labels[0] + 1) % 10
    np.save(tmp_path / "images.npy", preset.golden_images())
    np.save(tmp_path / "labels.npy", labels)
    return tmp_path


def test_evaluating(images, capsys):
    files = [str(images / "images.npy"), str(images / "labels.npy")]
    assert main(["evaluate", PRESET, *files]) == 0
    number = len(np.load(files[1]))
    assert f"{PRESET}: {1 - 1 / number:.2%}, {number - 1} of {number} right (keras)" in capsys.readouterr().out
    np.save(images / "normal.npy", zoo.get_preset(PRESET).preprocess(np.load(files[0])))
    assert main(["evaluate", str(zoo.get_preset(PRESET).path), str(images / "normal.npy"), files[1]]) == 0
    assert f"{number - 1} of {number} right" in capsys.readouterr().out


def test_samples_of_a_conversion_are_normalized_as_images_to_evaluate(images, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "tensorflow")
    taken = []
    monkeypatch.setattr(keras_mpt.convert, "to_tflite", lambda *_, samples, **__: taken.append(samples))
    preset, file = zoo.get_preset(PRESET), images / "images.npy"
    pixels = np.load(file)
    np.savez(images / "named.npz", image=pixels)
    command = ["convert", PRESET, "out.tflite", "--samples"]
    assert main([*command, str(file)]) == main([*command, str(images / "named.npz")]) == 0
    np.testing.assert_array_equal(taken[0], preset.preprocess(pixels))
    np.testing.assert_array_equal(taken[1]["image"], preset.preprocess(pixels))
    assert main([*command, str(file), "--preprocess", "preset"]) == 0  # the file normalizes
    assert main(["convert", str(preset.path), *command[2:], str(file)]) == 0
    np.testing.assert_array_equal(taken[2], pixels)
    np.testing.assert_array_equal(taken[3], pixels)


@pytest.mark.slow
@pytest.mark.tensorflow_only
def test_evaluating_a_converted_file(images, capsys):
    files = [str(images / "images.npy"), str(images / "labels.npy")]
    number = len(np.load(files[1]))
    assert main(["convert", PRESET, str(images / "x.tflite"), "--preprocess", "preset"]) == 0
    printed = capsys.readouterr().out
    assert "16 random samples" in printed and "all layers: float input, so no binary form" in printed
    assert main(["inspect", str(images / "x.tflite")]) == 0
    shown = capsys.readouterr().out
    assert "Inputs     image (1, 32, 32, 3) uint8" in shown and "Labels     airplane, automobile" in shown
    assert f"Ticket     {PRESET}.mpt, sha256 {zoo.get_preset(PRESET).sha256}" in shown
    assert main(["evaluate", str(images / "x.tflite"), *files, "--runtime", "tflite"]) == 0
    assert f"{number - 1} of {number} right (tflite)" in capsys.readouterr().out


@pytest.mark.tensorflow_only
def test_integers_to_evaluate_are_not_rounded(tmp_path, capsys):
    number, path = keras.Input((1,), dtype="int32"), tmp_path / "parity.tflite"
    parity = keras.ops.one_hot(keras.ops.mod(number[:, 0], 2), 2)
    keras_mpt.convert.to_tflite(keras.Model(number, parity), path)
    np.save(tmp_path / "images.npy", np.array([[2**24 + 1], [2**24]]))
    np.save(tmp_path / "labels.npy", np.array([1, 0]))
    files = str(tmp_path / "images.npy"), str(tmp_path / "labels.npy")
    assert main(["evaluate", str(path), *files, "--runtime", "tflite"]) == 0
    assert "100.00%, 2 of 2 right (tflite)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("ticket", "labels", "options", "message"),
    [
        (PRESET, [[1]], (), "LABELS must be 4 integers, one for each image. Received: int64 (1, 1)"),
        (PRESET, [1, 2, 3, 10], (), "LABELS must be from 0 to the number of outputs less one. Received: 1 to 10"),
        (PRESET, [0.0] * 4, (), "LABELS must be 4 integers, one for each image. Received: float64 (4,)"),
        ("x.tflite", [0] * 4, (), "--runtime keras cannot run this file: pass --runtime tflite or --runtime lce."),
        (
            "x.mpt",
            [0] * 4,
            ("--runtime", "lce"),
            "--runtime lce cannot run this file: pass --runtime keras. Received: x.mpt",
        ),
        (PRESET, [0] * 4, ("--runtime", "lce"), "`runtime` must be one of"),
        (PRESET, [0] * 4, ("--preset", "no"), "`name` must be a preset's."),
        (PRESET, [0] * 4, ("--preset", "conv4_mpt11_s50"), "--preset must be left out for the preset"),
    ],
    ids=str,
)
def test_what_cannot_be_evaluated(ticket, labels, options, message, images, capsys):
    np.save(images / "labels.npy", np.array(labels))
    command = ["evaluate", ticket, str(images / "images.npy"), str(images / "labels.npy"), *options]
    assert main(command) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "IMAGES must be a file of numpy.save. Received: "),
        (b"PK\x03\x04 an archive that is cut off", "IMAGES must be a file of numpy.save. Received: "),
        (np.float32(1), "IMAGES must be numbers of shape (number, ...). Received: float32 ()"),
        (np.array(["a"] * 4), "IMAGES must be numbers of shape (number, ...). Received: <U1 (4,)"),
        (np.ones((4, 32, 32, 2)), "IMAGES must be of shape ('number', 32, 32, 3). Received: shape (4, 32, 32, 2)"),
        (np.ones((0, 32, 32, 3)), "IMAGES must be one or more, of finite numbers. Received: shape (0, 32, 32, 3)"),
        (np.full((4, 32, 32, 3), np.nan), "IMAGES must be one or more, of finite numbers. Received: NaN or infinity"),
        (np.full((4, 32, 32, 3), 1e39), "IMAGES must be one or more, of finite numbers. Received: NaN or infinity as"),
        (np.ones((4, 32, 32)), "IMAGES must be of shape ('number', 32, 32, 3). Received: shape (4, 32, 32)"),
    ],
    ids=["empty", "cut", "scalar", "text", "channels", "no", "nan", "large", "axes"],
)
def test_images_that_are_none(content, message, images, capsys):
    file = images / "other.npy"
    file.write_bytes(content) if isinstance(content, bytes) else np.save(file, content)
    assert main(["evaluate", str(zoo.get_preset(PRESET).path), str(file), str(images / "labels.npy")]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_no_folder_for_an_import_is_found_out_first(capsys, tmp_path):
    assert main(["import", str(tmp_path / "no.pth"), str(tmp_path / "nowhere" / "x.mpt")]) == 1
    assert "`path` must be in a folder that exists" in capsys.readouterr().err
    assert main(["import", str(tmp_path / "no.pth"), str(tmp_path / "x.tflite")]) == 1
    assert "`path` must end in .mpt" in capsys.readouterr().err


def test_files_that_are_not_written(capsys, images, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "tensorflow")
    monkeypatch.chdir(images)
    shutil.copy(zoo.get_preset(PRESET).path, "ticket")
    shutil.copy("images.npy", "samples")
    (images / "x.gz").mkdir()
    shutil.copy("ticket", "x.cc.gz")
    before = {path.name: path.stat().st_mtime_ns for path in images.iterdir()}
    for command, message in [
        (["convert", PRESET, PRESET], "OUT must not be the name of a preset"),
        (["import", "no.pth", PRESET], "OUT must not be the name of a preset"),
        (["convert", "ticket", "ticket"], "`path` must be another file than the one that is read"),
        (["import", "ticket", "ticket"], "`path` must be another file than the one that is read"),
        (["convert", PRESET, "samples", "--samples", "samples"], "`path` must be another file"),
        (["convert", PRESET, "x", "--gzip"], "`path` must be that of a file. Received: 'x.gz', a folder"),
        (["convert", "x.cc.gz", "x.cc", "--target", "tflm", "--gzip"], "`path` must be another file"),
        (["convert", PRESET, "x.cc", "--target", "tflm", "--benchmark"], "--benchmark needs an OUT that runs here"),
    ]:
        assert main(command) == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, command
    assert {path.name: path.stat().st_mtime_ns for path in images.iterdir()} == before


def test_an_interrupted_command(capsys, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(zoo, "list_presets", interrupted)
    assert main(["list"]) == 130
    assert capsys.readouterr().err == "keras-mpt: interrupted\n"
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "x.mpt") as unfinished:
        unfinished.write_bytes(b"half")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("seconds", [2, 20])  # while Keras is imported, and later
def test_ctrl_c_ends_with_a_line(seconds, tmp_path):
    """As a terminal does it: all processes of the group get the signal, also one that was restarted."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "KERAS_BACKEND": "jax"}
    command = [sys.executable, "-m", "keras_mpt", "convert", PRESET, str(tmp_path / "x.tflite")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, start_new_session=True, **pipes) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(seconds)
        os.killpg(process.pid, signal.SIGINT)
        _, error = process.communicate()
    assert (process.returncode, error) == (130, "keras-mpt: interrupted\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="pipes of POSIX")
def test_nobody_reads_on(monkeypatch, capsys):
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr(sys, "stdout", os.fdopen(writer, "w"))
    redirected = []
    monkeypatch.setattr(os, "dup2", lambda *files: redirected.append(files) or files[1])
    assert main(["--verbose", "list"]) == 141
    assert capsys.readouterr().err == "" and redirected[0][1] == 1
    os.close(redirected[0][0])
    os.close(writer)  # or closing the file raises again
    with pytest.raises(OSError):
        sys.stdout.close()


def test_folders_that_may_not_be_written_to(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "tensorflow")
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK or pathlib.Path(path).name == "open")
    assert main(["convert", PRESET, str(tmp_path / "x.tflite")]) == 1
    assert "`path` must be in a folder that you may write to. Received: " in capsys.readouterr().err
    (tmp_path / "open").mkdir()
    (tmp_path / "link.mpt").symlink_to(tmp_path / "open" / "x.mpt")
    check_folder(tmp_path / "link.mpt")  # the file is written where the link points to


def test_names_beyond_the_encoding_of_the_terminal(tmp_path, monkeypatch):
    file = tmp_path / "Zoë ☃.mpt"
    shutil.copy(zoo.get_preset(PRESET).path, file)
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, "ascii", write_through=True))
    assert main(["inspect", str(file)]) == 0
    assert rb'Ticket "Zo\xeb \u2603.mpt"' in shown.getvalue() and b"Total" in shown.getvalue()


def test_a_ticket_of_several_outputs_is_not_evaluated(images, capsys, monkeypatch):
    inputs = keras.Input((32, 32, 3))
    outputs = keras_mpt.layers.MPTDense(10, seed=1)(inputs)
    keras_mpt.save_ticket(keras.Model(inputs, [outputs, -outputs]), images / "two.mpt")
    files = [str(images / name) for name in ("two.mpt", "images.npy", "labels.npy")]
    assert main(["evaluate", *files]) == 1
    assert "must be a model with one input and one output. Received: 1 inputs and 2 outputs" in capsys.readouterr().err
    one = keras_mpt.layers.MPTDense(1, seed=1)(keras.layers.Flatten()(inputs))
    keras_mpt.save_ticket(keras.Model(inputs, one), images / "one.mpt")
    np.save(images / "labels.npy", np.zeros(4, int))  # of which argmax would be all
    assert main(["evaluate", str(images / "one.mpt"), *files[1:]]) == 1
    assert "must be a classifier, with an output for each class. Received: (1,)" in capsys.readouterr().err
    monkeypatch.setattr(keras_mpt.convert, "run", lambda *_: dict.fromkeys(("a", "b"), np.zeros((4, 10))))
    assert main(["evaluate", "two.tflite", *files[1:], "--runtime", "tflite"]) == 1
    assert "must be a file with one output. Received: two.tflite with a, b" in capsys.readouterr().err


def test_conversion_restarts_itself_with_tensorflow(monkeypatch, capsys):
    calls = []

    def run(command, env):
        calls.append((command, env["KERAS_BACKEND"]))
        return subprocess.CompletedProcess(command, 7)

    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    monkeypatch.setattr(subprocess, "run", run)
    command = ["convert", PRESET, "out.tflite", "--weights", "int8"]
    before = signal.getsignal(signal.SIGINT)
    assert main(command) == 7
    assert signal.getsignal(signal.SIGINT) is before
    assert calls == [([sys.executable, "-m", "keras_mpt", *command], "tensorflow")]
    monkeypatch.setattr("keras_mpt.requirements.is_installed", lambda name: False)
    assert main(command) == 1
    assert 'this command needs tensorflow: pip install "keras-mpt[tensorflow]"' in capsys.readouterr().err
    assert len(calls) == 1


def test_compiled_libraries_are_kept_off_the_terminal(capfd, monkeypatch):
    with terminal.quiet():
        os.write(2, b"chatter of C++\n")
        print("ours", file=sys.stderr)
    os.write(2, b"later\n")
    assert capfd.readouterr().err == "ours\nlater\n"


@pytest.mark.slow
@pytest.mark.tensorflow_only
def test_the_terminal_shows_our_own_lines_only(tmp_path):
    """A process whose backend is another one: import, restart and conversion."""
    pytest.importorskip("jax")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "KERAS_BACKEND": "jax"}
    command = [sys.executable, "-m", "keras_mpt", "convert", PRESET, str(tmp_path / "x.tflite")]
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert process.returncode == 0 and process.stderr == ""
    assert process.stdout.startswith("Conversion to TensorFlow Lite\n") and (tmp_path / "x.tflite").stat().st_size
