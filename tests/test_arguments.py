"""One checker for each kind of argument, and files that are there as a whole or as they were before."""

import copy
import os
import pathlib
import stat
import subprocess
import sys

import numpy as np
import pytest

from keras_mpt import arguments
from keras_mpt.files import FileError, check_folder, replacing

pytestmark = pytest.mark.slow_with("jax", "torch")

HUGE = 10**5000  # which Python refuses to print

CHECKS = {
    "count": (arguments.check_count, [1, np.int64(7)], [0, -1, True, 1.0, "3", None, HUGE, 2**31, [1]]),
    "integer": (arguments.check_integer, [0, 5], [-1, False, 1.0, "3", None, HUGE]),
    "number": (arguments.check_number, [0, -2.5, np.float32(1)], [True, "1", None, np.nan, np.inf, HUGE, 1j]),
    "positive": (arguments.check_positive, [1e-30, 3], [0, -1.0, True, "1", np.inf, HUGE]),
    "fraction": (arguments.check_fraction, [0, 0.5, np.float32(0.5)], [1, -0.1, True, "0.5", np.nan, HUGE]),
    "sparsity": (arguments.check_sparsity, [0, 0.99], [1.0, None, "half", HUGE]),
    "bool": (arguments.check_bool, [True, False, np.bool_(True)], ["no", "", 0, 1, None, []]),
    "choice": (lambda name, v: arguments.check_choice(name, v, ["same", "valid"]), ["same"], ["smae", None, ["same"]]),
    "path": (arguments.check_path, ["a", pathlib.Path("b")], [3, None, True, b"bytes", ["a"], "", "a\0b"]),
    "list": (arguments.check_list, [[], (1, 2)], ["ab", {"a": 1}, None, 3, np.zeros(2)]),
    "instance": (lambda name, v: arguments.check_instance(name, v, dict, "a dict"), [{}], [[], None, HUGE]),
}


@pytest.mark.parametrize("kind", CHECKS)
def test_each_kind_of_argument(kind):
    check, good, bad = CHECKS[kind]
    for value in good:
        check("x", value)
    for value in bad:
        with pytest.raises((ValueError, TypeError), match="`x` must be .*Received: x=") as caught:
            check("x", value)
        assert len(str(caught.value)) < 500


def test_what_was_received_is_shown_on_one_short_line():
    class Bad:
        def __repr__(self):
            raise RuntimeError

    for value in ("\x1b[2J" * 10_000, [b"\0" * 10**6], HUGE, Bad(), np.zeros((500, 500)), {"a": "\n" * 9}):
        text = arguments.received("x", value)
        assert text.isprintable() and len(text) < 300, text
    with pytest.raises(ValueError, match="Did you mean 'valid'"):
        arguments.check_choice("x", "vald", ["same", "valid"])
    message = str(FileError("a\x1b[31m" + "x" * 10**6 + "\nend"))
    assert message.isprintable() and len(message) < 2000 and message.startswith("a ") and message.endswith(" end")
    assert str(copy.copy(FileError("one"))) == "one"


def test_a_replaced_file_keeps_its_permissions(tmp_path):
    file, new = tmp_path / "private", tmp_path / "new"
    file.write_bytes(b"old")
    file.chmod(0o600)
    with replacing(file) as unfinished:
        assert stat.S_IMODE(unfinished.stat().st_mode) == 0o600  # before it has a content
        unfinished.write_bytes(b"new")
    assert file.read_bytes() == b"new" and stat.S_IMODE(file.stat().st_mode) == 0o600
    file.chmod(0o444)
    with replacing(file) as unfinished:
        unfinished.write_bytes(b"newer")
    assert file.read_bytes() == b"newer" and stat.S_IMODE(file.stat().st_mode) == 0o444
    old = os.umask(0o027)
    try:
        with replacing(new) as unfinished:
            unfinished.write_bytes(b"new")
    finally:
        os.umask(old)
    assert stat.S_IMODE(new.stat().st_mode) == 0o640


def test_links_are_followed(tmp_path):
    (tmp_path / "folder").mkdir()
    target, link, loose = tmp_path / "folder" / "target", tmp_path / "link", tmp_path / "loose"
    target.write_bytes(b"old")
    link.symlink_to(target)
    loose.symlink_to(tmp_path / "folder" / "later")
    for path in (link, loose):
        with replacing(path) as unfinished:
            unfinished.write_bytes(b"new")
        assert path.is_symlink() and path.read_bytes() == b"new"
    assert target.read_bytes() == b"new"
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["folder", "later", "link", "loose", "target"]


def test_what_is_no_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path / "link", "/dev/null"):
        with pytest.raises(FileExistsError, match="`path` must be a regular file"), replacing(path):
            pass
    with pytest.raises(IsADirectoryError, match="`path`"):
        check_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match="`path`"):
        check_folder(tmp_path / "a" / "b")
    with pytest.raises(TypeError, match="`path`"):
        check_folder(3)


@pytest.mark.parametrize("name", ["\N{GRINNING FACE}" * 60, "a" * 255, "a.mpt"], ids=["wide", "long", "short"])
def test_unfinished_files_of_killed_processes_go(name, tmp_path):
    code = f"""
import os, sys, types
sys.modules["keras_mpt"] = package = types.ModuleType("keras_mpt")  # without Keras, whose import takes seconds
package.__path__ = [{os.path.dirname(arguments.__file__)!r}]
from keras_mpt.files import replacing
with replacing({name!r}) as file:
    print(file, flush=True)
    os.kill(os.getpid(), 9)
"""
    command, environment = [sys.executable, "-c", code], {**os.environ, "PYTHONUTF8": "1"}
    with replacing(tmp_path / name) as ours:  # one that is being written stays
        killed = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8")
        assert killed.returncode == -9, killed.stderr
        left = tmp_path / killed.stdout.strip()
        assert {left, ours} == set(tmp_path.iterdir())
        with replacing(tmp_path / name) as other:
            assert not left.exists() and ours.exists()
            other.write_bytes(b"other")
        ours.write_bytes(b"ours")
    assert [file.name for file in tmp_path.iterdir()] == [name] and (tmp_path / name).read_bytes() == b"ours"
