"""The tables of the pages are those of the results, and the benchmarks run."""

import json
import math
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

from benchmarks import edge, networks, rounds, tables
from keras_mpt.models import mpt_layers

pytestmark = pytest.mark.slow_with("jax", "torch")

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.tensorflow_only
@pytest.mark.parametrize("page", tables.PAGES)
def test_tables_are_those_of_the_results(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert tables.BLOCK.search(text)
    assert tables.written(text) == text


def test_the_page_of_converted_files_is_that_of_the_results():
    found = json.loads((ROOT / "benchmarks" / "results" / "edge.json").read_text())
    assert edge.page(found) == (ROOT / "docs" / "edge-results.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg_small", "conv4", "resnet18"])
def test_networks_in_pytorch_are_those_of_the_zoo(name):
    torch = pytest.importorskip("torch")
    model = networks.in_torch(name, networks.mask_by_sort)
    layers = mpt_layers(networks.ticket(name))
    shapes = [tuple(module.scores.shape) for module in model.modules() if hasattr(module, "scores")]
    assert sorted(map(math.prod, shapes)) == sorted(math.prod(layer.scores.shape) for layer in layers)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_masks_in_pytorch_keep_as_many():
    torch = pytest.importorskip("torch")
    magnitudes = torch.from_numpy(np.random.default_rng(0).permutation(1000).astype("float32"))
    for select in (networks.mask_by_sort, networks.mask_by_kth_value):
        np.testing.assert_array_equal(select(magnitudes, 0.2).numpy(), magnitudes.numpy() >= 800)


@pytest.mark.parametrize("flags", ["avx2", "avx2 avx512_bf16", "asimddp bf16"])
def test_results_name_the_instructions_of_the_processor(flags, monkeypatch, tmp_path):
    monkeypatch.setattr(rounds, "CPUINFO", tmp_path / "cpuinfo")
    rounds.CPUINFO.write_text(f"model name\t: Some CPU\nflags\t\t: fpu {flags}\n")
    assert rounds.machine()["processor"] == "Some CPU"
    assert rounds.machine()["instructions"][1:] == flags.split()


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "step_time --networks conv4 --batch 8 --rounds 2",
        "inference --networks conv4 --batch 8 --rounds 2",
        "growth --sizes 10000 --rounds 2",
        "memory --batch 8 --rounds 1",
        "first_use --cases import --rounds 1",
        "scale --side 100 --phases save load",
    ],
)
def test_benchmarks_run(command, tmp_path):
    module, *arguments = command.split()
    script = (
        "import pathlib, runpy, sys; from benchmarks import rounds\n"
        f"rounds.RESULTS = pathlib.Path({str(tmp_path)!r})\n"
        f"sys.argv = ['benchmark', *{arguments!r}]\n"
        f"runpy.run_module('benchmarks.{module}', run_name='__main__')\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=os.environ, check=True, timeout=500)
    result = json.loads((tmp_path / f"{module}_{keras.backend.backend()}.json").read_text())
    assert result["machine"]["cores"] and result["rows"]
