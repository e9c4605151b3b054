"""What the tables of the pages are made with."""

import csv

from benchmarks.rounds import RESULTS

ROOT = RESULTS.parent.parent


def markdown(header, rows):
    """Return a table; cells are strings."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def measured(name):
    """Return the rows of a file of examples/results as dicts."""
    with (ROOT / "examples" / "results" / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))
