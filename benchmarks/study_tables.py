"""The tables of the studies, whose runs are in examples/results: recycling, diversity of masks, jackpots."""

import numpy as np
from scipy import stats

from benchmarks.markdown import markdown, measured


def recycling():
    """Test accuracies at half width, and differences to the plain runs of the same seeds."""
    runs = _recycling_runs("0.5")
    sparsities = sorted({sparsity for _, _, sparsity in runs})
    lines = []
    for algorithm, method in dict.fromkeys(key[:2] for key in runs):
        cells, differences = [], []
        for sparsity in sparsities:
            paired = _differences(runs, algorithm, method, sparsity)
            differences += paired
            values = _mean([_accuracy(row) for row in runs[algorithm, method, sparsity].values()])
            cells.append(values if method == "plain" else f"{values} ({_mean(paired, sign='+')})")
        lines.append([algorithm, method, *cells, "" if method == "plain" else _interval(differences)])
    empty = [""] * len(sparsities)
    lines += [["both", method, *empty, _interval(values)] for method, values in _pooled(runs, runs).items()]
    titles = [f"{float(sparsity):.0%} removed" for sparsity in sparsities]
    return markdown(["algorithm", "method", *titles, "difference, 95 % interval"], lines)


def _accuracy(row):
    return 100 * float(row["accuracy"])


def recycling_bytes():
    """Mean sizes of the tickets of half width."""
    runs = _recycling_runs("0.5")
    sparsities = sorted({sparsity for _, _, sparsity in runs})
    lines = []
    for algorithm, method in dict.fromkeys(key[:2] for key in runs):
        sizes = [[int(row["ticket_bytes"]) for row in runs[algorithm, method, s].values()] for s in sparsities]
        plain = [[int(row["ticket_bytes"]) for row in runs[algorithm, "plain", s].values()] for s in sparsities]
        lines.append(
            [algorithm, method]
            + [
                f"{np.mean(size):,.0f}" + ("" if method == "plain" else f" ({np.mean(size) / np.mean(base) - 1:+.0%})")
                for size, base in zip(sizes, plain, strict=True)
            ]
        )
    return markdown(["algorithm", "method", *(f"{float(s):.0%} removed" for s in sparsities)], lines)


def recycling_whole_width():
    """Test accuracies at the whole width, and differences to the plain runs there and at half width."""
    runs, half = _recycling_runs("1.0"), _recycling_runs("0.5")
    lines = []
    for (algorithm, method, sparsity), found in runs.items():
        sizes, pairs = [int(row["ticket_bytes"]) for row in found.values()], ["", ""]
        if method != "plain":
            pairs = [_mean(_differences(table, algorithm, method, sparsity), sign="+") for table in (runs, half)]
        accuracy = _mean([_accuracy(row) for row in found.values()])
        lines.append([algorithm, method, f"{np.mean(sizes):,.0f}", accuracy, *pairs])
    whole, same = _pooled(runs, runs), _pooled(half, runs)
    lines += [["both", method, "", "", _interval(whole[method]), _interval(same[method])] for method in whole]
    return markdown(["algorithm", "method", "bytes", "test accuracy (%)", "difference", "with half the width"], lines)


def _pooled(runs, cells):
    """Return the differences to the plain runs by method, over these cells of all algorithms."""
    pooled = {}
    for algorithm, method, sparsity in cells:
        if method != "plain":
            pooled[method] = pooled.get(method, []) + _differences(runs, algorithm, method, sparsity)
    pooled["recycling, above its ablation"] = np.subtract(pooled["recycling"], pooled["ablation"])
    return pooled


def _differences(runs, algorithm, method, sparsity):
    """Return the points by which runs are better than the plain ones of the same seeds."""
    plain = runs[algorithm, "plain", sparsity]
    return [_accuracy(row) - _accuracy(plain[seed]) for seed, row in runs[algorithm, method, sparsity].items()]


def _recycling_runs(width):
    """Return `{(algorithm, method, sparsity): {seed: row}}`."""
    runs = {}
    for row in measured("recycling_study"):
        if row["width"] == width:
            runs.setdefault((row["algorithm"], row["method"], row["sparsity"]), {})[row["seed"]] = row
    return runs


def mask_diversity():
    """How alike the masks of several runs are, and what these are worth together."""
    runs = {}
    for row in measured("mask_diversity"):
        runs.setdefault(row["kind"], []).append(row)
    overlaps = {row["kind"]: row for row in measured("mask_diversity_overlaps")}
    titles = {
        "all": "everything",
        "scores": "scores and order",
        "order": "order",
        "wide": "everything, three times the weights",
    }
    lines = []
    for kind, rows in runs.items():
        found, accuracies = overlaps.get(kind), [100 * float(row["accuracy"]) for row in rows]
        size = np.mean([int(row["ticket_bytes"]) for row in rows])
        cells = ["", "", "", ""]
        if found:
            cells = [found["jaccard"], found["expected_jaccard"], found["score_correlation"]]
            cells = [f"{float(cell):.3f}" for cell in cells] + [f"{100 * float(found['ensemble']):.2f}"]
        lines.append([titles[kind], _mean(accuracies), f"{size:,.0f}", *cells])
    header = ["seeds of", "test accuracy (%)", "bytes", "Jaccard index", "of independent masks"]
    return markdown([*header, "correlation of scores", "three together (%)"], lines)


def jackpots():
    """Test accuracies of sparse networks found in a trained one, after some epochs."""
    curves = _jackpot_curves()
    last = max(curve.shape[1] for curve in curves.values())
    shown = range(1, last + 1) if last < 8 else [1, *range(5, last, 5), last]
    lines = []
    for (sparsity, method), curve in curves.items():
        if method == "magnitude":
            lines.append([f"{float(sparsity):.0%}", method, f"{curve[0, 0]:.2f}", *[""] * len(shown)])
        else:
            lines.append([f"{float(sparsity):.0%}", method, "", *(_mean(curve[:, epoch - 1]) for epoch in shown)])
    return markdown(["removed", "method", "as it is", *(f"epoch {epoch}" for epoch in shown)], lines)


def jackpot_speed():
    """Epochs until a mean test accuracy is reached, from a random mask and from that of the magnitudes."""
    curves = {key: curve.mean(0) for key, curve in _jackpot_curves().items()}
    lines = []
    for sparsity in dict.fromkeys(sparsity for sparsity, _ in curves):
        random = curves[sparsity, "random"]
        for epoch in range(3, len(random) + 1, 3):
            goal = random[:epoch].max()
            first = 1 + int(np.argmax(random >= goal))
            row = [f"{float(sparsity):.0%}", f"{goal:.1f} %", str(first)]
            for method in ("unrestricted", "jackpot"):
                reached = curves[sparsity, method] >= goal
                row.append(str(1 + int(np.argmax(reached))) if reached.any() else "not")
            lines.append(row)
    header = ["removed", "test accuracy", "from a random mask", "from magnitudes", "with short restriction"]
    return markdown(header, lines)


def _jackpot_curves():
    """Return `{(sparsity, method): test accuracies by seed and epoch}`."""
    curves = {}
    for row in measured("jackpots"):
        seeds = curves.setdefault((row["sparsity"], row["method"]), {})
        seeds.setdefault(row["seed"], []).append(float(row["test accuracy"]))
    return {key: np.array([*seeds.values()]) for key, seeds in sorted(curves.items(), key=lambda item: item[0][0])}


def jackpot_overlaps():
    """Jaccard index of the masks found with those of pruning criteria."""
    rows = measured("jackpots_overlap")
    found = {(row["sparsity"], row["method"], row["criterion"]): row["jaccard"] for row in rows}
    runs = dict.fromkeys((row["sparsity"], row["method"]) for row in rows)
    criteria = dict.fromkeys(row["criterion"] for row in rows)
    return markdown(
        ["sparsity", "found by", *criteria], [[*run, *(found[(*run, name)] for name in criteria)] for run in runs]
    )


def frontier():
    """Which width, density and frozen fraction is the most accurate at so many bytes of a file."""
    runs = _frontier_runs("frontier")
    budgets, lines = sorted({budget for _, budget in runs}), []
    for name in dict.fromkeys(name for name, _ in runs):
        cells = []
        for budget in budgets:
            rows = runs[name, budget]
            fits = float(rows[0]["factor"]) > 0
            cells += [rows[0]["factor"], _mean([_accuracy(row) for row in rows])] if fits else ["too large", ""]
        lines.append([*name, *cells])
    titles = [title for budget in budgets for title in (f"width, {budget:,} bytes", "test accuracy (%)")]
    return markdown(["weights kept", "by the seed", *titles], lines)


def frontier_resnet18():
    """The same of ResNet-18, a line for each file."""
    lines = []
    for (name, _), rows in _frontier_runs("frontier_resnet18").items():
        size = np.mean([int(row["bytes"]) for row in rows])
        lines.append([*name, rows[0]["factor"], f"{size:,.0f}", _mean([_accuracy(row) for row in rows])])
    return markdown(["weights kept", "by the seed", "width", "bytes", "test accuracy (%)"], lines)


def _frontier_runs(study):
    """Return `{((kept, by the seed), budget): rows of the seeds}`."""
    runs = {}
    for row in measured(study):
        name = f"{float(row['density']):.0%}", f"{float(row['frozen']):.0%}"
        if row["kind"] != "ticket":
            name = f"all, {row['kind']}", ""
        runs.setdefault((name, int(row["budget"])), []).append(row)
    return runs


def _mean(values, sign=""):
    """Return "mean ± standard deviation"; one value has no deviation."""
    deviation = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
    return f"{np.mean(values):{sign}.2f}{deviation}"


def _interval(differences):
    """Return the mean of paired differences with its interval by Student's t."""
    half = stats.t.ppf(0.975, len(differences) - 1) * stats.sem(differences)
    mean = round(np.mean(differences), 2) + 0.0  # no -0.00
    return f"{mean:+.2f} ± {half:.2f} ({len(differences)} pairs)"


ALL = [recycling, recycling_bytes, recycling_whole_width, mask_diversity, jackpots, jackpot_speed, jackpot_overlaps]
ALL += [frontier, frontier_resnet18]
