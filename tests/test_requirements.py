"""What an installation lacks is said together with the line that installs it."""

import os
import pathlib
import subprocess
import sys

import pytest

from keras_mpt import convert, requirements

pytestmark = pytest.mark.slow_with("jax", "torch")

ROOT = pathlib.Path(__file__).resolve().parent.parent
HIDE = "import sys; sys.modules.update(dict.fromkeys({hidden})); import keras_mpt"  # an import of None fails


def imported_without(tmp_path, hidden, **environment):
    outside = {key: value for key, value in os.environ.items() if key not in ("KERAS_BACKEND", "KERAS_HOME")}
    environment = {**outside, "PYTHONPATH": str(ROOT), "KERAS_HOME": str(tmp_path), **environment}
    command = [sys.executable, "-c", HIDE.format(hidden=hidden)]
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert process.returncode == 1
    return process.stderr


def test_a_missing_backend_is_named_with_what_to_do(tmp_path):
    message = imported_without(tmp_path, ("jax",), KERAS_BACKEND="jax")
    assert (
        "Keras wants the backend 'jax', which is not installed (the environment variable KERAS_BACKEND=jax)" in message
    )
    assert 'pip install "keras-mpt[jax]"' in message
    assert "export KERAS_BACKEND=tensorflow" in message and "(installed)" in message


def test_without_a_choice_the_source_of_keras_own_is_said(tmp_path):
    message = imported_without(tmp_path, ("tensorflow", "jax", "torch"))
    assert f"'tensorflow', which is not installed (the file {tmp_path / 'keras.json'})" in message
    assert 'pip install "keras-mpt[torch]" && export KERAS_BACKEND=torch' in message


def test_other_failed_imports_of_keras_are_not_explained_away(tmp_path):
    assert "numpy" in (message := imported_without(tmp_path, ("numpy",)))
    assert "Keras wants the backend" not in message


def test_a_missing_extra_gives_the_line_to_paste():
    with pytest.raises(
        ImportError, match=r'^Plots needs an extra \(no_such is not installed\): pip install "keras-mpt\[x\]"$'
    ):
        with requirements.extra("x", "Plots"):
            import no_such  # noqa: F401
    with pytest.raises(ImportError, match="'hashlib'.*keras-mpt"), requirements.extra("x", "Plots"):
        from hashlib import no_such_name  # noqa: F401


def test_what_runs_and_reads_files_says_what_is_missing(tmp_path, monkeypatch):
    path = tmp_path / "a.tflite"
    path.write_bytes(b"\0\0\0\0TFL3")
    for name in ("tensorflow", "tensorflow.lite.python"):
        monkeypatch.setitem(sys.modules, name, None)
    for call in (
        lambda: convert.metadata(path),
        lambda: convert.latency(path, "tflite"),
        lambda: convert.run(path, "tflite", []),
    ):
        with pytest.raises(ImportError, match=r' needs an extra .*pip install "keras-mpt\[tensorflow\]"$'):
            call()


def test_a_state_dict_needs_pytorch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r'^A PyTorch state dict needs .*pip install "keras-mpt\[torch\]"$'):
        convert.to_pytorch_state_dict(None)
