"""The studies: a table comes out, and what is finished is not done again."""

import csv
import os
import pathlib
import subprocess
import sys

import keras
import pytest
from absl import app

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples" / "recipes"
SMALL = ["--data=digits", "--train_examples=64", "--batch_size=32", "--width=0.06", "--epochs=2"]


def study(name, folder, *flags):
    command = [sys.executable, f"{name}.py", f"--output_dir={folder}", *SMALL, *flags]
    result = subprocess.run(command, cwd=EXAMPLES, env=os.environ, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def rows(folder):
    with (folder / "runs.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_recycling_study(tmp_path):
    flags = ("--sparsities=0.5", "--algorithms=Biprop")
    study("recycling_study", tmp_path, *flags, "--seeds=1", "--methods=plain,mixed")
    first = (tmp_path / "runs.csv").read_text()
    printed = study("recycling_study", tmp_path, *flags, "--seeds=2", "--methods=plain,mixed,ablation")
    assert (tmp_path / "runs.csv").read_text().startswith(first)
    found = [(row["seed"], row["method"]) for row in rows(tmp_path)]
    assert sorted(found) == [(seed, method) for seed in "01" for method in ("ablation", "mixed", "plain")]
    line, _difference = [line for line in printed.splitlines() if line.startswith("| Biprop | mixed |") and "±" in line]
    accuracies = [100 * float(row["accuracy"]) for row in rows(tmp_path) if row["method"] == "mixed"]
    assert f"{sum(accuracies) / 2:.2f} ± {abs(accuracies[0] - accuracies[1]) / 2**0.5:.2f}" in line
    assert (tmp_path / "accuracy.png").exists() and (tmp_path / "churn_Biprop_mixed_0.5_0.png").exists()
    assert not list(tmp_path.glob("*.mpt"))


@pytest.mark.slow
def test_frontier(tmp_path):
    flags = ("--budgets=8000,100", "--densities=0.5", "--frozen=0,0.5")
    study("frontier", tmp_path, *flags, "--seeds=1")
    first = (tmp_path / "runs.csv").read_text()
    printed = study("frontier", tmp_path, *flags, "--seeds=2")
    assert (tmp_path / "runs.csv").read_text().startswith(first)
    found = {(row["kind"], row["frozen"], row["budget"], row["seed"]): row for row in rows(tmp_path)}
    assert len(found) == 2 * 2 * (2 + 2)
    for (_, _, budget, _), row in found.items():
        assert (row["factor"] == "0") == (budget == "100")
    widths = [
        float(found[kind, frozen, "8000", "0"]["factor"])
        for kind, frozen in (("float32", "0"), ("int8", "0"), ("ticket", "0"), ("ticket", "0.5"))
    ]
    assert widths == sorted(widths) and len(set(widths)) == 4
    assert "| int8 | 1 | 0 | 8000 |" in printed and (tmp_path / "frontier.png").exists()
    assert not list(tmp_path.glob("*.mpt"))


@pytest.mark.slow
def test_mask_diversity(tmp_path):
    printed = study("mask_diversity", tmp_path, "--seeds=2", "--width=0.25")
    assert [(row["kind"], row["seed"]) for row in rows(tmp_path)] == [
        (kind, seed) for kind in ("all", "scores", "order", "wide") for seed in "01"
    ]
    one, wide = (sum(int(r["ticket_bytes"]) for r in rows(tmp_path) if r["kind"] == k) / 2 for k in ("all", "wide"))
    assert 1.5 * one < wide < 2.5 * one
    assert len(list((tmp_path / "tickets").iterdir())) == 8
    with (tmp_path / "overlaps.csv").open(newline="") as file:
        found = {row["kind"]: row for row in csv.DictReader(file)}
    assert list(found) == ["all", "scores", "order"] and 0 < float(found["all"]["ensemble"]) <= 1
    assert float(found["order"]["jaccard"]) > float(found["all"]["jaccard"])
    assert (tmp_path / "overlap_all.png").exists()
    before = (tmp_path / "runs.csv").read_text()
    again = study("mask_diversity", tmp_path, "--seeds=2", "--width=0.25")
    assert (tmp_path / "runs.csv").read_text() == before
    assert again.splitlines()[-4:] == printed.splitlines()[-4:]


@pytest.mark.parametrize("word", ["1", "-0.1", "nan", "many"])
def test_sparsities_are_checked_before_the_work(word, scripts):
    import training

    training.check_sparsities(["0", "0.5"])
    with pytest.raises(app.UsageError, match=rf"--sparsities must be numbers in \[0, 1\). Received: {word}$"):
        training.check_sparsities(["0.5", word])


def test_networks_that_return_probabilities_are_no_bases_or_teachers(scripts):
    import training

    for activation in (None, "relu"):
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, activation)])
        training.check_logits("teacher", model)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, "softmax")])
    with pytest.raises(app.UsageError, match="--teacher must be a network that returns logits"):
        training.check_logits("teacher", model)
