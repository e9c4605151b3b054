"""The tables of the studies, whose runs are in examples/results: recycling and jackpots."""

import numpy as np
from scipy import stats

from benchmarks.markdown import markdown, measured


def recycling():
    """Test accuracies, and differences to the plain runs of the same seeds."""
    runs = _recycling_runs()
    sparsities = sorted({sparsity for _, _, sparsity in runs})
    lines, everywhere = [], {}
    for algorithm, method in dict.fromkeys(key[:2] for key in runs):
        cells, differences = [], []
        for sparsity in sparsities:
            found, plain = runs[algorithm, method, sparsity], runs[algorithm, "plain", sparsity]
            paired = [_accuracy(row) - _accuracy(plain[seed]) for seed, row in found.items()]
            differences += paired
            values = _mean([_accuracy(row) for row in found.values()])
            cells.append(values if method == "plain" else f"{values} ({_mean(paired, sign='+')})")
        everywhere[method] = everywhere.get(method, []) + differences
        lines.append([algorithm, method, *cells, "" if method == "plain" else _interval(differences)])
    empty = [""] * len(sparsities)
    lines += [["both", method, *empty, _interval(values)] for method, values in everywhere.items() if method != "plain"]
    more = np.subtract(everywhere["recycling"], everywhere["ablation"])
    lines.append(["both", "recycling, above its ablation", *empty, _interval(more)])
    titles = [f"{float(sparsity):.0%} removed" for sparsity in sparsities]
    return markdown(["algorithm", "method", *titles, "difference, 95 % interval"], lines)


def _accuracy(row):
    return 100 * float(row["accuracy"])


def recycling_bytes():
    """Mean sizes of the tickets."""
    runs = _recycling_runs()
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


def _recycling_runs():
    """Return `{(algorithm, method, sparsity): {seed: row}}`."""
    runs = {}
    for row in measured("recycling_study"):
        runs.setdefault((row["algorithm"], row["method"], row["sparsity"]), {})[row["seed"]] = row
    return runs


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


def _mean(values, sign=""):
    """Return "mean ± standard deviation"; one value has no deviation."""
    deviation = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
    return f"{np.mean(values):{sign}.2f}{deviation}"


def _interval(differences):
    """Return the mean of paired differences with its interval by Student's t."""
    half = stats.t.ppf(0.975, len(differences) - 1) * stats.sem(differences)
    return f"{np.mean(differences):+.2f} ± {half:.2f} ({len(differences)} pairs)"


ALL = [recycling, recycling_bytes, jackpots, jackpot_overlaps]
