"""The package's imports run one way, and importing it costs nothing."""

import ast
import json
import os
import pathlib
import re
import subprocess
import sys
import types

import pytest

import keras_mpt

pytestmark = pytest.mark.slow_with("jax", "torch")

ROOT = pathlib.Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "keras_mpt").rglob("*.py"))
# A module may import those before it, except where it is in FORBIDDEN. A new one needs a place here.
ORDER = ["_types", "terminal", "requirements", "_keras", "arguments", "files", "remote", "ops", "random", "pixels"]
ORDER += ["initializers", "quantizers"]
ORDER += ["masks", "layers", "models", "callbacks", "tickets", "analysis", "zoo", "convert", "hub", "", "commands"]
ORDER += ["__main__"]  # "": keras_mpt/__init__.py
FORBIDDEN = {
    "initializers": {"files", "ops"},
    "quantizers": {"initializers"},
    "masks": {"quantizers"},
    "tickets": {"callbacks", "analysis"},
    "zoo": {"models", "callbacks", "analysis"},
}
HEAVY = {"tensorflow", "tf_keras", "jax", "torch", "larq", "larq_compute_engine", "ai_edge_litert", "scipy", "PIL"}
HEAVY |= {"matplotlib"}


def module(path):
    """The part of the package that a file belongs to: "layers" for keras_mpt/layers/base.py."""
    parts = path.relative_to(ROOT / "keras_mpt").with_suffix("").parts
    return "" if parts == ("__init__",) else parts[0]


def imported(nodes):
    """Yield the dotted names that these syntax nodes import."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    own = module(path)
    names = imported(ast.walk(parsed(path)))
    used = {name.split(".")[1] for name in names if name.startswith("keras_mpt.")} - {own}
    assert own in ORDER, f"say in ORDER what {own!r} may import"
    allowed = set(ORDER[: ORDER.index(own)]) - FORBIDDEN.get(own, set())
    assert used <= allowed, f"{own} may not import {sorted(used - allowed)}"


MOST_LINES, MOST_LINES_OF_FUNCTION, MOST_PARAMETERS = 400, 60, 6
# Functions that have more parameters, and why.
PUBLIC = "arguments that users leave out or name"
OPERATION = "an operation of the file format, whose attributes they are"
MORE_PARAMETERS = {
    "layers/twins.py: __init__": PUBLIC,
    "models/from_keras.py: to_mpt": PUBLIC,
    "models/jackpots.py: to_jackpot": PUBLIC,
    "tickets/saving.py: save_ticket": PUBLIC,
    "convert/pytorch/importing.py: from_pytorch": PUBLIC,
    "ops/selection.py: enclose": "the state of a loop, which backends take as separate tensors",
    "convert/tflite.py: to_tflite": PUBLIC,
    "convert/tflm.py: to_tflm": PUBLIC,
    "convert/lce.py: _convolve": OPERATION,
    "convert/integer/tflite.py: apply": OPERATION,
    "convert/integer/writer.py: tensor": OPERATION,
    "convert/qonnx/graph.py: quantized": OPERATION,
    "convert/qonnx/layers.py: _kernel_layer": OPERATION,
}


def functions_of(path):
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef):
            builder = any(getattr(decorator, "id", "") == "builder" for decorator in node.decorator_list)
            yield node, "zoo: a network" if builder else f"{path.relative_to(ROOT / 'keras_mpt')}: {node.name}"


def test_files_and_functions_are_short():
    reasons = {"zoo: a network"}  # a signature that editors show and tools follow
    for path in SOURCES:
        assert path.read_text(encoding="utf-8").count("\n") <= MOST_LINES, path
        for function, name in functions_of(path):
            body = function.body[1:] if ast.get_docstring(function) else function.body
            assert not body or body[-1].end_lineno - body[0].lineno < MOST_LINES_OF_FUNCTION, name
            parameters = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
            if sum(parameter.arg not in ("self", "cls") for parameter in parameters) > MOST_PARAMETERS:
                reasons.add(name)
    assert reasons == {"zoo: a network", *MORE_PARAMETERS}


def test_the_table_of_changes_names_what_is_there():
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (A.*?) \| (.*) \|$", page, re.MULTILINE)
    assert len(rows) >= 10
    for change, files in rows:
        assert "`" in files, change
        for path, names in re.findall(r"`([^`]+/[^`]+)`(?: \(([^)]*)\))?", files):
            assert (ROOT / path).is_file(), f"{change}: {path}"
            for name in re.findall(r"`(\w+)`", names):
                assert re.search(rf"\b{name}\b", (ROOT / path).read_text(encoding="utf-8")), f"{change}: {path}: {name}"


# `"keras.src.ops..."` in quotes is a name in files, which tickets compare.
INSIDES = re.compile(
    r"^\s*(from|import) keras\.src|\._(keras_history|keras_mask|flatten_layers|run_through_graph|inbound_nodes)\b",
    re.MULTILINE,
)


def test_what_keras_hides_is_used_in_one_file():
    found = {str(path.relative_to(ROOT)) for path in SOURCES if INSIDES.search(path.read_text(encoding="utf-8"))}
    assert found == {"keras_mpt/_keras.py"}


OUTSIDE = [path for folder in ("benchmarks", "docs", "examples") for path in (ROOT / folder).rglob("*.py")]


@pytest.mark.parametrize("path", sorted(OUTSIDE), ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_used_of_the_package_is_there(path):
    tree = parsed(path)
    used = {name for name in imported(ast.walk(tree)) if name.split(".")[0] == "keras_mpt"}
    chains = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for name in used | {chain for chain in chains if re.fullmatch(r"keras_mpt(\.\w+)+", chain)}:
        owner = keras_mpt
        for part in name.split(".")[1:]:
            assert hasattr(owner, part), name
            owner = getattr(owner, part)
            if not isinstance(owner, (type, types.ModuleType)):
                break  # what an instance has is not known here


def test_importing_is_cheap_and_leaves_no_traces():
    pytest.importorskip("jax")
    code = """
import json, os, sys, time
import keras
environment, modules, start = dict(os.environ), set(sys.modules), time.process_time()
import keras_mpt
seconds = time.process_time() - start
print(json.dumps({"seconds": seconds, "same": dict(os.environ) == environment,
                  "all": [*sys.modules], "new": [*set(sys.modules) - modules]}))
"""
    environment = {**os.environ, "KERAS_BACKEND": "jax", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout.splitlines()[-1])
    assert found["same"] and found["seconds"] < 1.0
    assert not {"tensorflow", "torch"} & set(found["all"])
    assert not HEAVY & {name.split(".")[0] for name in found["new"]}
