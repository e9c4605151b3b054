"""Write the tables of README.md and some pages of docs/ anew from the result files, the zoo's presets and the logs.

    python -m benchmarks.tables

A table stands between `<!-- table: NAME -->` and `<!-- end -->`. tests/test_benchmarks.py compares what is there with
what comes out here.
"""

import argparse
import json
import re

from benchmarks import study_tables
from benchmarks.markdown import ROOT, markdown, measured
from benchmarks.rounds import RESULTS, load, rows_of

PAGES = ["README.md", "docs/benchmarks.md", "docs/recycling.md", "docs/jackpots.md"]
PAGES += ["docs/guides/jackpots.md", "docs/guides/microcontrollers.md"]
BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
BACKENDS = {
    "tensorflow": "TensorFlow",
    "tensorflow_xla": "TensorFlow, XLA",
    "jax": "JAX",
    "torch": "PyTorch",
}
LOGS = {  # of examples/results
    "dense, all weights trained": "conv4_dense",
    "MPT-1/32, half of random weights chosen": "conv4_mpt32_s50",
    "MPT-1/1, binary activations too": "conv4_mpt11_s50",
}
PAPER = {  # CIFAR-10, by (network, sparsity, binary activations): as arXiv:2103.09377 reports
    ("resnet18_mpt", 0.8, False): "94.7%",
    ("vgg_small_mpt", 0.95, False): "91.5%",
}
FORMATS = [  # where, bits of the activations, file of docs/edge-results.md
    ("[LiteRT](docs/deployment.md), binary weights", "32", "int8"),
    ('the same, lossy (`weights="dynamic_int8"`)', "32", "dynamic int8"),
    ("LiteRT, binary weights and activations", "1", "integer"),
    ("[larq-compute-engine](docs/deployment.md), the same", "1", "larq-compute-engine"),
]


def cell(rows, column, form, **wanted):
    """Return the formatted value of the first row that has what is wanted, or nothing."""
    found = [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]
    return form.format(found[0][column]) if found and column in found[0] else ""


def machines():
    """What the results of `make bench` were measured on: a row for each machine."""
    found = {}
    for path in sorted(RESULTS.glob("*.json")):
        machine = load(path.stem)["machine"]
        if "instructions" in machine:  # not for converted files, which name their machine beside their tables
            cells = machine["processor"], ", ".join(machine["instructions"]), str(machine["cores"]), machine["keras"]
            found.setdefault(cells, []).append(path.stem)
    rows = [[*cells, ", ".join(results)] for cells, results in found.items()]
    return markdown(["processor", "instructions", "cores", "Keras", "results"], rows)


def step_time():
    """Ratio of a ticket's training step to that of the dense network, on each backend."""
    return _by_backend("step_time", "ratio to dense", "keras_mpt")


def mask_rules():
    """Ratio of a training step with each rule of masks to that with `TopK`, on each backend."""
    results = {title: rows_of(f"mask_rules_{backend}") for backend, title in BACKENDS.items()}
    results = {title: rows for title, rows in results.items() if rows}
    cases = sorted({(row["batch"], row["name"]) for rows in results.values() for row in rows})
    return markdown(
        ["rule", "batch", *results],
        [
            [f"`{name}`", str(batch)]
            + [cell(rows, "ratio to TopK", "{:.2f}", batch=batch, name=name) for rows in results.values()]
            for batch, name in cases
            if not name.startswith("TopK")
        ],
    )


def inference():
    """Ratio of inference with MPT layers that are trained to that of the stripped model, on each backend."""
    return _by_backend("inference", "ratio", "keras_mpt")


def inference_of_tickets():
    """The same with a loaded ticket, whose layers hold their kernels."""
    return _by_backend("inference", "ratio", "loaded ticket")


def _by_backend(result, column, name):
    results = {title: rows_of(f"{result}_{backend}") for backend, title in BACKENDS.items()}
    results = {title: rows for title, rows in results.items() if rows}
    cases = dict.fromkeys((row["network"], row["batch"]) for rows in results.values() for row in rows)
    return markdown(
        ["network", "batch", *results],
        [
            [network, str(batch)]
            + [cell(rows, column, "{:.2f}", network=network, batch=batch, name=name) for rows in results.values()]
            for network, batch in sorted(cases)
        ],
    )


def throughput():
    """Images per second of a training step, and how many times as fast as PyTorch with a full sort that is."""
    rows = rows_of("step_time_tensorflow")
    rows = [row for row in rows if "times as fast as full sort" in row]
    cases = sorted(dict.fromkeys((row["network"], row["batch"]) for row in rows))
    names = dict.fromkeys(row["name"] for row in rows)

    def entry(name, network, batch):
        wanted = {"name": name, "network": network, "batch": batch}
        speed = cell(rows, "images per second", "{:.0f}", **wanted)
        return f"{speed} ({cell(rows, 'times as fast as full sort', '{:.2f}', **wanted)})" if speed else ""

    header = ["training", *(f"{network}, batch {batch}" for network, batch in cases)]
    return markdown(header, [[name, *(entry(name, *case) for case in cases)] for name in names])


def memory():
    """Peak memory of a training step: median, lowest and highest, and ratio of the medians."""
    rows = rows_of("memory_tensorflow")
    batches = sorted({row["batch"] for row in rows})
    variables = "bytes of variables per weight"

    def entry(name, batch):
        found = [row for row in rows if (row["name"], row["batch"]) == (name, batch)]
        megabytes = [f"{peak / 1e6:,.0f}" for row in found for peak in (row["peak bytes"], *row["peaks"])]
        return (
            f"{megabytes[0]} MB ({megabytes[1]} to {megabytes[-1]}), {found[0]['ratio to dense']:.2f}" if found else ""
        )

    return markdown(
        ["ResNet-18, 80 %", *(f"batch {batch}" for batch in batches), variables],
        [
            [name, *(entry(name, batch) for batch in batches), cell(rows, variables, "{:.1f}", name=name)]
            for name in dict.fromkeys(row["name"] for row in rows)
        ],
    )


def first_use():
    """Seconds of what comes once, of a ticket and of the plain model."""
    return markdown(
        ["what", "backend", "ours, s", "plain, s", "ratio", "goal"],
        [
            [
                row["what"],
                title,
                f"{row['seconds']:.2f}",
                f"{row['plain seconds']:.2f}",
                f"{row['ratio']:.2f}",
                str(row["goal"] or ""),
            ]
            for backend, title in BACKENDS.items()
            for row in rows_of(f"first_use_{backend}")
        ],
    )


def growth():
    """Milliseconds of a mask, and costs of a ticket, by the number of weights."""
    rows = rows_of("growth_tensorflow")
    ways = list(rows[0]["mask seconds"]) if rows else []
    return markdown(
        ["weights", *(f"{way}, ms" for way in ways), "ticket, bytes", "save, s", "load, s", "peak memory"],
        [
            [f"{row['weights']:,}", *(f"{1e3 * row['mask seconds'][way]:,.1f}" for way in ways)]
            + [f"{row['file bytes']:,}", f"{row['save seconds']:.2f}", f"{row['load seconds']:.2f}"]
            + [f"{row['load peak bytes'] / 1e6:,.0f} MB"]
            for row in rows
        ],
    )


def scale():
    """One layer of 1e8 weights: seconds, bytes of the file, and memory beside four bytes for each weight."""
    names = {"step": "training step", "save": "`save_ticket`", "load": "`load_ticket`", "convert": "`to_tflite`"}

    def entries(row):
        size = f"{row['file bytes'] / 1e6:.1f}" if "file bytes" in row else ""
        memory = row["peak bytes"]
        return [
            names[row["phase"]],
            f"{row['seconds']:.1f}",
            size,
            f"{memory / 1e6:,.0f}",
            f"{memory / row['weights']:.1f}",
        ]

    header = ["TensorFlow", "seconds", "file, MB", "peak memory, MB", "bytes a weight"]
    return markdown(header, [entries(row) for row in rows_of("scale_tensorflow")])


def file_size():
    """Bytes of a network in several formats."""
    columns = {
        "weights": "weights",
        "float32 .keras": "float32 `.keras`",
        "float32 .keras, zipped": "zipped",
        "int8 .tflite": "int8 `.tflite`",
        "int8 .tflite, zipped": "zipped",
        "ticket": "ticket",
        "entropy": "entropy",
    }

    def entry(row, key):
        return f"**{row[key]:,}**" if key == "ticket" else f"{row[key]:,}"

    rows = load("file_size")["bytes"].items()
    return markdown(
        ["network", *columns.values()], [[name, *(entry(row, key) for key in columns)] for name, row in rows]
    )


def zoo():
    """The published tickets in four columns, the most accurate first."""
    presets = json.loads((ROOT / "zoo" / "presets.json").read_text(encoding="utf-8"))
    rows = []
    for preset in sorted(presets, key=lambda preset: -preset["accuracy"]):
        name, arguments, dense = preset["name"], preset["arguments"], preset["dense"]
        paper = PAPER.get((preset["architecture"], arguments.get("sparsity"), arguments["input_quantizer"] is not None))
        beside = [f"dense {dense['accuracy']:.1%}"] if dense else []
        beside += [f"paper {paper}"] if paper else []
        size = (ROOT / "zoo" / f"{name}.mpt").stat().st_size
        rows.append([f"[{name}](zoo/{name}.md)", f"{preset['accuracy']:.1%}", ", ".join(beside), f"{size:,}"])
    return markdown(["preset", "accuracy", "for comparison", "bytes"], rows)


CHOICES = {  # presets of one network
    "binary jackpot, 80 % removed": "whitened_conv6_mpt32_s80_jackpot",
    "binary jackpot, 90 % removed": "whitened_conv6_mpt32_s90_jackpot",
    "lottery jackpot, 95 % removed": "whitened_conv6_mpt32_s95_lottery",
    "random signs and scores, labels from the trained network": "whitened_conv6_mpt32_s50_taught",
    "random signs and scores, nothing trained": "whitened_conv6_mpt32_s50",
}


def trained_network():
    """What can be made of a trained network, and what one gets without: accuracy, epochs and bytes."""
    presets = {p["name"]: p for p in json.loads((ROOT / "zoo" / "presets.json").read_text(encoding="utf-8"))}
    first = presets[CHOICES["binary jackpot, 80 % removed"]]
    weights, dense = first["counts"]["weights"], first["dense"]
    whole = [f"{dense['accuracy']:.2%}", str(dense["epochs"]), f"{4 * weights:,}", "32"]
    rows = [["all weights trained, float32", *whole]]
    for how, name in CHOICES.items():
        preset, size = presets[name], (ROOT / "zoo" / f"{name}.mpt").stat().st_size
        cells = [f"[{how}](../../zoo/{name}.md)", f"{preset['accuracy']:.2%}", str(preset["epochs"]), f"{size:,}"]
        rows.append([*cells, f"{8 * size / weights:.2f}"])
    return markdown(["", "test accuracy", "epochs", "bytes", "bits a weight"], rows)


def formats():
    """What one network comes to as a ticket and as converted files: bytes, time, exactness."""
    rows = rows_of("edge")
    size = (ROOT / "zoo" / "conv4_mpt32_s50.mpt").stat().st_size
    where = "[ticket](docs/ticket-format.md) for Keras on TensorFlow, JAX and PyTorch"
    table = [[where, f"{size:,}", "", "kernels have the same bits"]]
    for where, activations, file in FORMATS:
        (row,) = [r for r in rows if r["network"] == f"Conv-4, 50 %, MPT-1/{activations}" and r["file"] == file]
        time = "optimized on ARM64 only" if file == "larq-compute-engine" else f"{row['ratio to float32']:.2f}"
        exact = (
            f"{row['agreement']:.1%} keep their class"
            if file.startswith("dynamic")
            else f"largest error {row['max error']:.0e}"
        )
        table.append([where, f"{row['bytes']:,}", time, exact])
    return markdown(["what you get", "bytes", "time, float32 = 1", "exactness"], table)


def integer_files():
    """Files of MPT-1/1 networks: bytes, times, what is kept."""
    header = ["network", "file", "bytes", "gzip", "time, exact int8 = 1", "classes kept", "same outputs", "images"]
    keys = {"network": "{}", "file": "{}", "bytes": "{:,}", "gzip": "{:,}", "ratio": "{:.2f}", "classes": "{:.1%}"}
    keys |= {"outputs": "{:.1%}", "images": "{:,}"}
    rows = rows_of("integer")
    return markdown(header, [[form.format(row[key]) for key, form in keys.items()] for row in rows])


def integer_signs():
    """Signs inside integer files that are other than those of integers in numpy."""
    found = load("integer")["wrong signs"]
    rows = [
        [file, runtime, f"{number:,}", f"{wrong:,}"]
        for file, runtimes in found.items()
        for runtime, (wrong, number) in runtimes.items()
    ]
    return markdown(["file", "runtime", "signs", "wrong"], rows)


def integer_layers():
    """Times of single layers in 8 and 2 bits a weight."""
    header = ["layer", "inputs", "outputs", "bytes, 8 bits", "bytes, 2 bits", "time, 8 bits = 1", "products alone"]
    rows = [
        [row["layer"], str(row["inputs"]), str(row["outputs"])]
        + [f"{row[f'bytes of {bits}']:,}" for bits in (8, 2)]
        + [f"{row[key]:.2f}" for key in ("ratio", "ratio of products")]
        for row in rows_of("integer_layers")
    ]
    return markdown(header, rows)


def training():
    """The last epochs of the logs."""
    rows = []
    for title, name in LOGS.items():
        log = measured(name)
        last = log[-1]
        rows.append([title, str(len(log)), f"{float(last['accuracy']):.2%}", f"{float(last['val_accuracy']):.2%}"])
    return markdown(["run", "epochs", "training accuracy", "test accuracy (last epoch)"], rows)


def scores():
    """Accuracies of short trainings with other recipes, the best first."""
    rows = {}
    for row in measured("scores"):
        rows.setdefault((row["variant"], row["flags"]), []).append(row)
    epochs = [column for column in measured("scores")[0] if column.startswith("epoch")]

    def mean(runs, column):
        return f"{100 * sum(float(run[column]) for run in runs) / len(runs):.1f}"

    cells = [
        [
            variant,
            f"`{flags}`" if flags else "",
            str(len(runs)),
            *(mean(runs, column) for column in (*epochs, "training")),
        ]
        for (variant, flags), runs in rows.items()
    ]
    header = ["variant", "flags", "seeds", *epochs, "training"]
    return markdown(header, sorted(cells, key=lambda row: -float(row[-2])))


_ALL = [
    machines,
    step_time,
    mask_rules,
    throughput,
    memory,
    inference,
    inference_of_tickets,
    first_use,
    growth,
    scale,
    file_size,
    zoo,
    formats,
    training,
    scores,
    trained_network,
    *study_tables.ALL,
    integer_files,
    integer_signs,
    integer_layers,
]
TABLES = {table.__name__: table for table in _ALL}


def written(text):
    """Return a page with its tables written anew."""
    return BLOCK.sub(lambda block: block[1] + TABLES[block[2]]() + block[3], text)


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for page in PAGES:
        path = ROOT / page
        path.write_text(written(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
