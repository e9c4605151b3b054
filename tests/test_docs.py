"""What the pages say runs: code blocks, commands, links, notebooks, and the reference has every public name."""

import functools
import inspect
import os
import pathlib
import re
import shlex
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_mpt
from keras_mpt.__main__ import main

pytestmark = pytest.mark.tensorflow_only
ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
DOCS_PAGES = [path for path in DOCS.rglob("*.md") if "node_modules" not in path.parts]
PAGES = sorted([*DOCS_PAGES, *(ROOT / "zoo").glob("*.md"), *(ROOT / "examples").rglob("*.md"), *ROOT.glob("*.md")])
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
EPOCHS = 2  # of trainings on other pages than "Your first ticket"


def blocks(name, *languages):
    return [code for language, code in BLOCK.findall((ROOT / name).read_text("utf-8")) if language in languages]


def sequential():
    """A trained Keras model, as the pages about one's own model take it."""
    kl = keras.layers
    model = keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            kl.Conv2D(4, 3, strides=4, activation="relu", name="conv"),
            kl.BatchNormalization(name="norm"),
            kl.Conv2D(8, 3, activation="relu", name="second"),
            kl.GlobalAveragePooling2D(name="pool"),
            kl.Dense(10, name="logits"),
        ]
    )
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(*data(), verbose=0)
    return model


def ticket():
    model = keras_mpt.models.to_mpt(sequential(), seed=0)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def digits_ticket():
    """Save a ticket as "Your first ticket" does, of a small network that was not trained."""
    layers = [keras.Input((8, 8, 1)), keras_mpt.layers.MPTConv2D(8, 3, seed=0), keras.layers.Flatten()]
    return keras_mpt.save_ticket(keras.Sequential([*layers, keras_mpt.layers.MPTDense(10, seed=1)]), "digits.mpt")


def data():
    return np.random.default_rng(0).uniform(0, 255, (8, 32, 32, 3)).astype("float32"), np.arange(8)


# What a page takes for granted, before its n-th block
GIVEN = {
    ("README.md", 1): {"model": sequential, "images": lambda: data()[0], "labels": lambda: data()[1]},
    ("docs/deployment.md", 0): {"ticket": digits_ticket},
    ("docs/guides/recycling.md", 0): {"model": ticket},
    ("docs/guides/jackpots.md", 0): {"model": sequential},
}


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A folder of its own, with the published tickets; short trainings, and a small Conv-4, but for published ones."""
    fit, conv4 = keras.Model.fit, keras_mpt.zoo.conv4_mpt

    def short_fit(self, *args, epochs=1, **kwargs):
        return fit(self, *args, epochs=min(epochs, EPOCHS), **{**kwargs, "verbose": 0})

    def small_conv4(**arguments):
        return conv4(**({} if "weights" in arguments else {"width": 0.1}), **arguments)

    monkeypatch.setattr(keras.Model, "fit", functools.wraps(fit)(short_fit))
    monkeypatch.setattr(keras_mpt.zoo, "conv4_mpt", small_conv4)
    monkeypatch.setattr(keras.datasets.cifar10, "load_data", lambda: (data(), data()))
    monkeypatch.setattr(keras_mpt.layers, "TWINS", dict(keras_mpt.layers.TWINS))
    in_folder(monkeypatch, tmp_path)


def in_folder(monkeypatch, folder):
    monkeypatch.chdir(folder)
    (folder / "zoo").symlink_to(ROOT / "zoo")


def run_python(name, **namespace):
    images, labels = data()
    namespace = {"keras": keras, "keras_mpt": keras_mpt, "images": images, "labels": labels, **namespace}
    for i, code in enumerate(blocks(name, "python")):
        namespace.update({key: make() for key, make in GIVEN.get((name, i), {}).items()})
        if "os.environ" in code:  # which is read when packages are imported
            subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
        else:
            exec(compile(code, f"{name}, block {i}", "exec"), namespace)
    return namespace


OTHERS = ("docs/first-ticket.md", "docs/from-pytorch.md")  # see below, and test_pytorch_document.py


# All cards of the zoo have the same blocks; some pages take other people's converters along.
LONG = {n for n in NAMES if n.startswith("zoo/") and n not in ("zoo/README.md", "zoo/whitened_conv6_mpt32_s50.md")}
LONG |= {"docs/guides/fpga.md", "docs/deploy/onnx.md", "docs/guides/distributed.md"}
RUNNING = [n for n in NAMES if blocks(n, "python") and n not in OTHERS]


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in LONG else n for n in RUNNING])
def test_python_blocks_run(name, small):
    if "larq." in "".join(blocks(name, "python")):
        pytest.importorskip("tf_keras")
    if 'os.environ["KERAS_BACKEND"] = "jax"' in "".join(blocks(name, "python")):
        pytest.importorskip("jax")
    if "onnx" in "".join(blocks(name, "python")):
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    for package in ("qonnx", "hls4ml"):
        if f"import {package}" in "".join(blocks(name, "python")):
            pytest.importorskip(package)
    if "to_lce" in "".join(blocks(name, "python")):
        pytest.importorskip("larq_compute_engine")
        pytest.importorskip("ai_edge_litert")
    run_python(name)


@pytest.mark.slow
def test_first_ticket_is_as_good_as_promised(monkeypatch, tmp_path, capsys):
    in_folder(monkeypatch, tmp_path)
    namespace = run_python("docs/first-ticket.md", images=None, labels=None)
    assert 0.96 < namespace["accuracy"]
    assert np.abs(namespace["difference"]).max() == 0
    assert np.array_equal(namespace["first"].frozen_kernel, namespace["random_weights"])
    assert "144 of 288" in capsys.readouterr().out
    for command in commands("docs/first-ticket.md"):
        run_command(command)


@pytest.mark.slow
def test_readme_prints_what_it_says(tmp_path):
    """The first block and the output below it, but for what differs from machine to machine."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "KERAS_BACKEND": "tensorflow"}
    command = [sys.executable, "-c", blocks("README.md", "python")[0]]
    process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    numbers = re.compile(r"[\d.,]*\d")
    (said,) = blocks("README.md", "text")
    assert numbers.sub("N", process.stdout) == numbers.sub("N", said)
    found, told = ([float(n.replace(",", "")) for n in numbers.findall(text)] for text in (process.stdout, said))
    assert found == pytest.approx(told, rel=0.02)


def commands(name):
    languages = ["bash"] if name.startswith("docs/") else ["bash", ""]
    lines = "".join(blocks(name, *languages)).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def run_command(words):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    words = ["-m", "keras_mpt", *words[1:]] if words[0] == "keras-mpt" else words[1:]
    subprocess.run([sys.executable, *words], check=True, capture_output=True, env=environment)


@pytest.mark.parametrize("name", [n for n in NAMES if commands(n)])
def test_commands_exist(name):
    for words in commands(name):
        while "=" in words[0]:  # variables of the environment
            words = words[1:]
        check = CHECKS.get(words[0].removeprefix(".venv/bin/"))
        assert check, f"cannot tell whether this command works: {words}"
        check(words[1:])


def check_make(words):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {word for word in words if "=" not in word} <= set(targets)


def check_pip(words):
    for extras in re.findall(r"\.\[(.*?)\]", " ".join(words)):
        assert all(
            re.search(rf'^    "{extra}":', (ROOT / "setup.py").read_text(), re.MULTILINE) for extra in extras.split(",")
        )


def check_keras_mpt(words):
    """The command line understands the words."""
    with pytest.raises(SystemExit) as stop:  # of --help, which comes after the check of what is before it
        main([*words, "--help"])
    assert stop.value.code == 0


def check_python(words):
    """A script or module has the flags that are given to it; the command line of keras_mpt understands them."""
    if words[:2] == ["-m", "keras_mpt"]:
        return check_keras_mpt(words[2:])
    if words[:2] in (["-m", "venv"], ["-m", "pytest"]):
        return
    if words[0] == "-m":
        words = [f"{words[1].replace('.', '/')}.py", *words[2:]]
    script = next(
        p for p in (ROOT / words[0], ROOT / "examples/edge" / words[0], ROOT / "zoo" / words[0]) if p.exists()
    )
    source = "".join(path.read_text() for path in with_imported(script))
    for flag in (word.split("=")[0] for word in words[1:] if word.startswith("--")):
        assert re.search(rf"(DEFINE_\w+\(\s*\"|\"--){flag[2:]}\"", source), f"{script} has no flag {flag}"


def with_imported(script, seen=()):
    """Return a script and the modules beside it that it imports, whose flags it has, too."""
    names = re.findall(r"^import (\w+)$", script.read_text(), re.MULTILINE)
    found = [*seen, script]
    for path in (script.with_name(f"{name}.py") for name in names):
        if path.exists() and path not in found:
            found = with_imported(path, found)
    return found


def check_file(words):
    assert words[0].startswith(".venv/")


def unchecked(words):
    """A command of another program, which no test here can know about."""


CHECKS = {"make": check_make, "pip": check_pip, "python": check_python, "python3.11": check_python}
CHECKS |= {"keras-mpt": check_keras_mpt, "npm": unchecked}
CHECKS |= {"source": check_file, "export": unchecked, "adb": unchecked}


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    path = ROOT / name
    for target in LINK.findall(BLOCK.sub("", path.read_text("utf-8"))):
        if re.match(r"https?:", target):
            continue
        file, _, anchor = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        assert linked.exists(), f"{name} links to {target}"
        if anchor and "api/" not in target:
            titles = re.findall(r"^#+ (.*)$", linked.read_text("utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}, target


def test_the_files_that_contributing_names_exist():
    named = re.findall(
        r"`((?:keras_mpt|tests|docs|zoo|examples)/[\w/.]*)`", (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    )
    assert len(named) > 10
    assert [path for path in named if not (ROOT / path).exists()] == []


def public():
    """Yield the public names as `("layers.MPTDense", object)`."""
    for name in keras_mpt.__all__:
        module = getattr(keras_mpt, name)
        if inspect.ismodule(module):
            exported = getattr(module, "__all__", None) or [
                name
                for name, value in vars(module).items()
                if getattr(value, "__module__", None) == module.__name__ and name[0] != "_"
            ]
            yield from ((f"{module.__name__}.{key}", getattr(module, key)) for key in exported)


def is_code(value):
    return callable(value) or isinstance(value, property)


def test_public_names_are_documented():
    missing = []
    for name, value in public():
        members = {name: value}
        if inspect.isclass(value):
            own = [key for key in vars(value) if key[0] != "_" and not hasattr(keras.layers.Conv2D, key)]
            members |= {f"{name}.{key}": getattr(value, key) for key in own}
        missing += [key for key, member in members.items() if is_code(member) and not inspect.getdoc(member)]
    assert not missing


def test_the_reference_has_each_name():
    pages = "".join(path.read_text() for path in (DOCS / "api").glob("*.md"))
    for name, _ in public():
        assert f"::: {name}\n" in pages or f"::: {name.rsplit('.', 1)[0]}\n" in pages, name


def test_each_page_is_in_the_navigation():
    mkdocs = (ROOT / "mkdocs.yml").read_text()
    for page in DOCS_PAGES:
        assert f": {page.relative_to(DOCS)}\n" in mkdocs, page


def test_no_menu_is_longer_than_fifteen_entries():
    """What is open at once: the tabs, and the entries of one of them."""
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    tabs = re.split(r"^  - ", nav, flags=re.MULTILINE)[1:]
    assert max([len(tabs), *(len(re.findall(r"^ +- ", tab, re.MULTILINE)) for tab in tabs)]) <= 15


def test_the_table_of_builders_is_that_of_their_signature():
    table = (DOCS / "api/zoo.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", table, re.MULTILINE))
    for name in keras_mpt.zoo.__all__:
        builder = getattr(keras_mpt.zoo, name)
        if name.endswith("_mpt"):
            parameters = inspect.signature(builder).parameters
            assert list(rows) == list(parameters)
            for argument, parameter in parameters.items():
                shown = repr(parameter.default).replace("'", '"')
                assert "differs" in rows[argument] or shown in rows[argument], (name, argument)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path, tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient").NotebookClient
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(path, as_version=4)
    assert any(cell.get("outputs") for cell in notebook.cells)
    assert path.stat().st_size < 300_000
    client(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()


@pytest.mark.slow
def test_the_site_builds_without_warnings(tmp_path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True)


@pytest.mark.slow
@pytest.mark.parametrize("script", ["kernel", "split", "file_size", "search", "jackpots", "recycling"])
def test_figures_are_drawn(script, tmp_path):
    command = [sys.executable, str(DOCS / "figures" / f"{script}.py"), str(tmp_path)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert all(path.stat().st_size > 5000 for path in tmp_path.glob("*.png")) and [*tmp_path.iterdir()]
