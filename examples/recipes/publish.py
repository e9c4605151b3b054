"""Publish a training of train.py as a preset of the zoo, remove one, or write cards and table anew.

    python publish.py RUN --name conv4_mpt32_s50 --data_dir DIR --data "CIFAR-10" --trained "one GPU, 2 hours" \\
        --dense examples/results/conv4_dense.csv
    python publish.py --name conv4_mpt32_s50 --data_dir DIR      # converts a published ticket again
    python publish.py RUN ... --found "A trained network gave ..."  # a jackpot: its card says how it was found
    python publish.py --name conv4_mpt32_s50 --note "..."        # a sentence for its card
    python publish.py --remove conv4_mpt32_s50                   # the preset goes, with its files
    python publish.py                                            # cards and table only

RUN is the output folder of train.py or whitened_conv6.py. Its ticket is evaluated from the published file on the whole
test set, and so is what it is converted to. Writes, all in zoo/, NAME.mpt (the ticket), NAME.csv (the log), NAME.png
(the curve), NAME.tflite and, of MPT-1/1, NAME_lce.tflite (for phones), an entry of presets.json with checksums and
golden outputs, a model card NAME.md and the table of README.md. All of it is written elsewhere first and takes its
place once everything has succeeded.
"""

import argparse
import csv
import hashlib
import json
import os
import pathlib
import shutil
import tempfile

import numpy as np

import keras_mpt

ZOO = pathlib.Path(__file__).resolve().parents[2] / "zoo"
CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck".split()
GOLDEN_IMAGES = 4
TARGETS = {"tflite": "LiteRT", "lce": "larq-compute-engine"}

CARD = """# {name}

`keras_mpt.zoo.{architecture}(weights="{name}")` loads it{default}.

{kind}. Of {weights:,} weights, {kept:,} are kept ({density:.1%}).{found}{besides}

| | |
|---|---|
| test accuracy of the file | **{accuracy:.2%}** ({data}; 10,000 test images) |
{flipped}{dense}| file | {bytes:,} bytes, {bits:.2f} bits for each weight; as float32: {float32:,} bytes |
{converted}| trained | {epochs} epochs, seed {seed}; {trained} |
| recipe | `{recipe}` |
| SHA-256 | `{sha256}` |

![Test accuracy by epoch]({name}.png)

```python
import keras_mpt

preset = keras_mpt.zoo.get_preset("{name}")
model = preset.model()
logits = model.predict(preset.preprocess(images))  # images: pixels from 0 to 255, (number, 32, 32, 3)
```

Its masks are frozen. To train them further, use `keras_mpt.load_ticket("{name}", trainable=True)`, and about a tenth of
the original learning rate.

DIR is a folder or file with [the data](../examples/results/README.md#data):

- `python examples/recipes/evaluate.py --weights {name} --data_dir DIR` evaluates the file{runtimes};
- `python examples/recipes/reproduce.py --weights {name} --data_dir DIR --output_dir OUT` trains it again
  ([log]({name}.csv)).{note}

It is meant for research and as an example. It was tested on small images of ten classes only: {classes}.
"""

README = """# Published tickets

The package includes these trained tickets. Load one by its name:

```python
import keras_mpt

print(keras_mpt.zoo.list_presets(min_accuracy=0.75))  # also by activations="binary", max_bytes=400_000
preset = keras_mpt.zoo.get_preset("conv4_mpt32_s50")
model = preset.model()
logits = model.predict(preset.preprocess(images))  # images: pixels from 0 to 255, (number, 32, 32, 3)
```

`load_ticket("conv4_mpt32_s50")` and `keras-mpt inspect conv4_mpt32_s50` take the name as well. In a clone, each ticket
has a model card (click on its name), the log of its training, and a `.tflite` for LiteRT. Those with binary activations
also have an `_lce.tflite` for larq-compute-engine.

{tables}
- Accuracies are those of the files on the whole test set, one seed each. They differ on CIFAR-10 as it is published,
  without JPEG: see [the data](../examples/results/README.md#data).
- "dense" is the same network with float activations and all weights trained, by the same script with its own recipe.
  Epochs differ, and the dense Conv-4 and Conv-6 have no batch normalization, which MPT-1/1 has. So a ticket can be
  better than its dense network.
- "MACs" are multiply-accumulates for one image, including those of removed weights. "1-bit MACs" have 1-bit weights and
  1-bit activations, "float MACs" are all others.

A name consists of the network, the bits of weights and activations ([`mpt32`: 1 and 32, `mpt11`: 1 and
1](../docs/concepts.md#132-and-11)), and the percentage of the weights that are *removed* (`s80`: 80 %). More words:

| word | meaning |
|---|---|
| `jackpot` | the signs are those of a [trained network](../docs/guides/jackpots.md) |
| `lottery` | a [lottery jackpot](../docs/guides/jackpots.md#lottery-jackpots): 32-bit values of a trained network |
| `taught` | a trained network gave the labels |
| `recycled` | some random signs were [replaced](../docs/recycling.md) in training |
| `half` | half of the filters |
| `float_stem` | the first convolution is an ordinary one with trained weights |

To evaluate all: `python examples/recipes/evaluate.py --weights all --data_dir DIR`. Table and cards are written by
`python examples/recipes/publish.py`. The `recipe` inside older tickets says `examples/train.py`, which is
`examples/recipes/train.py` now.

Next: [use a ticket for your own classes](../docs/guides/training.md#freeze-masks-or-train-a-ticket-further), or
[convert it](../docs/deployment.md).
"""
HEADER = ["preset", "test accuracy", "dense", "epochs", "ticket, bytes", "weights", "kept", "1-bit MACs", "float MACs"]


def publish(run, options, test, draft):
    """Copy a run into the folder `draft`; return the entry of its preset.

    Raises:
        ValueError: Kept weights are not those that the seeds draw, and --found does not say what they are.
    """
    import cifar10
    from evaluate import accuracy, with_mirror_images

    images, labels = test
    name = options.name
    ticket = keras_mpt.tickets.Ticket.read(run / "ticket.mpt")
    provenance = ticket.provenance
    changed = any(entry["kernel"] and entry["kernel"]["changes"] for entry in ticket.layers.values())
    if changed and not options.found:
        raise ValueError(f"--found must say where those weights come from that seeds did not draw: {run}")
    preset = {
        "name": name,
        "architecture": provenance["architecture"],
        "dataset": "cifar10",
        "default": options.default,
        "arguments": provenance["arguments"],
        "mean": [round(float(value), 6) for value in cifar10.MEAN],
        "std": [round(float(value), 6) for value in cifar10.STD],
        "classes": CIFAR10,
        "data": options.data,
        "recipe": provenance["recipe"],
        "epochs": provenance["epochs"],
        "seed": provenance["arguments"]["seed"],
        "trained": options.trained,
        "found": options.found or "",
        "dense": None,
        "counts": {},
        "converted": {},
    }
    model = keras_mpt.load_ticket(run / "ticket.mpt")
    preset["counts"] = counts(model)

    def predict(inputs):
        return model.predict(inputs, batch_size=500, verbose=0)

    inputs = cifar10.normalize(images)
    preset["accuracy"] = accuracy(predict(inputs), labels)
    preset["accuracy_flipped"] = accuracy(with_mirror_images(predict)(inputs), labels)
    told = ("architecture", "arguments", "data", "recipe", "epochs", "trained", "accuracy")
    file = draft / f"{name}.mpt"
    keras_mpt.save_ticket(model, file, provenance={key: preset[key] for key in told})
    preset["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    preset["golden"] = [[0.0]] * GOLDEN_IMAGES  # as many as there will be
    published = keras_mpt.zoo.Preset(**preset)
    logits = keras_mpt.load_ticket(file)(published.preprocess(published.golden_images()))
    preset["golden"] = [[float(f"{value:.7g}") for value in row] for row in np.asarray(logits)]
    shutil.copyfile(run / "log.csv", draft / f"{name}.csv")
    draw(draft / f"{name}.csv", draft / f"{name}.png", name)
    return preset


def counts(model):
    """Return the numbers of weights, kept ones and multiply-accumulates of a ticket's model."""
    layers = keras_mpt.models.mpt_layers(model)
    macs = keras_mpt.models.summary(model, print_fn=lambda text: None).totals
    return {
        "weights": sum(int(np.prod(layer.frozen_kernel.shape)) for layer in layers),
        "kept": sum(int(layer.kept) for layer in layers),
        **{key: macs[key] for key in ("macs_1bit", "macs_32bit")},
    }


def convert(preset, test, draft):
    """Convert a ticket; return what is known of the files, which stay in `draft`.

    Each file is checked on the whole test set: only where an activation is at zero may it differ from Keras.
    """
    from evaluate import accuracy

    images, labels = test
    preset, found = keras_mpt.zoo.Preset(**preset), {}
    inputs, binary = preset.preprocess(images), preset.activations == "binary"
    ticket = newest(f"{preset.name}.mpt", draft)
    logits = np.sort(keras_mpt.load_ticket(ticket).predict(inputs, batch_size=500, verbose=0))
    margins = logits[:, -1] - logits[:, -2]
    ways = {"tflite": keras_mpt.convert.to_tflite, "lce": keras_mpt.convert.to_lce}
    for target in ways if binary else ["tflite"]:
        path = draft / f"{preset.name}{'_lce' * (target == 'lce')}.tflite"
        report = ways[target](ticket, path, samples=inputs, labels=preset.classes)
        print(report)
        tied = int(np.sum(margins <= 2 * report.max_error))  # where what was measured may put the other one first
        facts = {"bytes": report.bytes, "gzip": report.gzip, "flips": report.flips, "tied": tied}
        facts["accuracy"] = accuracy(keras_mpt.convert.run(path, target, inputs), labels)
        facts |= {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        found[target] = facts
    return found


def newest(file, draft):
    """Return the path of a file of this name: in `draft` if it is written anew, else in the zoo."""
    return draft / file if (draft / file).exists() else ZOO / file


def dense(log):
    """Return what the dense network's log says: of its last epoch, as of tickets.

    Raises:
        ValueError: The log is not in this repository, where the card refers to it.
    """
    if not log.is_file() or not log.resolve().is_relative_to(ZOO.parent.resolve()):
        raise ValueError(f"--dense must be a log inside the repository, as examples/results has. Received: {log}")
    with log.open(newline="") as file:
        rows = list(csv.DictReader(file))
    place = pathlib.Path("..") / log.resolve().relative_to(ZOO.parent.resolve())
    return {"accuracy": float(rows[-1]["val_accuracy"]), "epochs": len(rows), "log": place.as_posix()}


def draw(log, image, title):
    """Plot the accuracies of a log by epoch."""
    from matplotlib.figure import Figure

    with log.open(newline="") as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    for column, label in (("accuracy", "training"), ("val_accuracy", "test")):
        points = [(int(row["epoch"]) + 1, 100 * float(row[column])) for row in rows if row[column] != "NA"]
        axes.plot(*zip(*points, strict=True), label=label)
    axes.set(xlabel="epoch", ylabel="accuracy (%)", title=title)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(image, dpi=120)


def metadata(preset):
    """Return the block that a card begins with, in the words of the Hugging Face hub."""
    task = "image-classification"
    result = {
        "task": {"type": task},
        "dataset": {"type": preset["dataset"], "name": preset["data"]},
        "metrics": [{"type": "accuracy", "value": preset["accuracy"]}],
    }
    return keras_mpt.hub.metadata_block(
        {
            "library_name": "keras_mpt",
            "license": "apache-2.0",
            "tags": ["keras", "pruning", "lottery-ticket"],
            "pipeline_tag": task,
            "datasets": [preset["dataset"]],
            "model-index": [{"name": preset["name"], "results": [result]}],
        }
    )


def card(preset, draft):
    """Return the text of a preset's model card, and its row of the table."""
    ticket = keras_mpt.tickets.Ticket.read(newest(f"{preset['name']}.mpt", draft))
    weights, kept, *macs = (preset["counts"][key] for key in ("weights", "kept", "macs_1bit", "macs_32bit"))
    frozen = {
        each["config"]["name"]
        for each in ticket.config["config"]["layers"]
        if not each["config"].get("trainable", True)
    }
    floats = {True: [], False: []}  # a float stem, gamma and beta; a stem that was computed from images
    for path, entry in ticket.layers.items():
        count = sum(int(np.prod(v["shape"])) for v in entry["variables"] if not v["name"].startswith("moving_"))
        if count:
            floats[path in frozen].append(f"{count:,} of {path}")
    besides = ""
    if floats[False]:
        besides += f" Trained as usual, and stored as floats: {', '.join(floats[False])}."
    if floats[True]:
        besides += f" Computed from training images, and stored as floats: {', '.join(floats[True])}."
    binary = preset["arguments"].get("input_quantizer") is not None
    kind = f"MPT-1/{'1' if binary else '32'}: binary weights"
    if preset["arguments"].get("kernel_quantizer") == "identity":
        kind = "a mask over float weights"
    float32 = 4 * int(weights + sum(np.prod(v["shape"]) for e in ticket.layers.values() for v in e["variables"]))
    facts = {
        "note": "",
        "found": "",
        **preset,
        "kind": f"{preset['architecture']}, {kind}, {'binary' if binary else 'float'} activations",
        "default": f', and so does `weights="{preset["dataset"]}"`' if preset["default"] else "",
        "weights": weights,
        "kept": kept,
        "density": kept / weights,
        "besides": besides,
        "bytes": ticket.size,
        "bits": 8 * ticket.size / weights,
        "float32": float32,
        "classes": ", ".join(preset["classes"]),
        "dense": "",
        "flipped": "",
        "converted": "".join(conversion(target, found) for target, found in preset["converted"].items()),
        "runtimes": ",\n  and with `--runtime tflite` or `--runtime lce` a phone file" if binary else "",
    }
    if not binary and "file" in preset["converted"].get("tflite", {}):
        facts["runtimes"] = ",\n  and with `--runtime tflite` the phone file"
    if preset.get("accuracy_flipped"):
        facts["flipped"] = (
            f"| mean of its logits for an image and its mirror image | {preset['accuracy_flipped']:.2%} |\n"
        )
    facts["found"] = f" {facts['found'] or 'No kept weight was trained.'}"
    facts["note"] = f" {facts['note']}" if facts["note"] else ""
    dense = preset["dense"]
    if dense:
        facts["dense"] = (
            "| dense network, float activations, all weights trained | {accuracy:.2%} in the last of {epochs} epochs, "
            "one seed ([log]({log})) |\n".format(**dense)
        )
    cells = [f"[{preset['name']}]({preset['name']}.md)", f"**{preset['accuracy']:.2%}**"]
    cells += [f"{dense['accuracy']:.2%}" if dense else "", str(preset["epochs"]), f"{ticket.size:,}"]
    cells += [f"{weights / 1e6:.2f} M", f"{facts['density']:.0%}", *(f"{n / 1e6:,.0f} M" if n else "" for n in macs)]
    return metadata(preset) + CARD.format(**facts), row(cells)


def row(cells):
    return f"| {' | '.join(cells)} |\n"


def conversion(target, found):
    """Return a card's row for a converted file."""
    name = f"[{found['file']}]({found['file']}), " if "file" in found else ""
    flips = "no image differs from Keras by more than rounding"
    if found["flips"]:
        flips = f"{found['flips']} images differ from Keras by more than rounding, each with an activation at zero"
    if found.get("tied"):  # not counted for the first presets
        flips += f"; {found['tied']} images have two largest logits that differ by rounding only, if at all"
    return (
        f"| for {TARGETS[target]} | {name}{found['bytes']:,} bytes, zipped {found['gzip']:,}; "
        f"**{found['accuracy']:.2%}** in the interpreter; {flips} |\n"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=pathlib.Path, nargs="?", help="output folder of examples/recipes/train.py")
    parser.add_argument("--name", help="of the preset")
    parser.add_argument("--data", help="what it was trained and tested on, in words")
    parser.add_argument("--trained", help="on what machine and how long, in words")
    parser.add_argument("--found", help="where the weights come from, in a sentence, if they were not drawn")
    parser.add_argument("--default", action="store_true", help="make it the default preset of its architecture")
    parser.add_argument("--dense", type=pathlib.Path, help="log of the same network trained densely")
    parser.add_argument("--note", help="what else to say on the card; without a run, nothing is converted again then")
    parser.add_argument("--data_dir", help="see examples/recipes/cifar10.py")
    parser.add_argument("--remove", help="a preset that goes")
    options = parser.parse_args()
    file = ZOO / "presets.json"
    entries = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    presets = {preset["name"]: preset for preset in entries}
    check(parser, options, presets)
    with tempfile.TemporaryDirectory(dir=ZOO.parent, prefix=".publish-") as folder:
        draft = pathlib.Path(folder)
        if options.remove:
            presets = removed(presets, options.remove)
        if options.name:
            change(presets, options, draft)
        write_texts([presets[name] for name in sorted(presets)], draft)
        # On the same disk, so that each takes its place at once; last the list, which has the checksums of the others.
        for path in sorted(draft.iterdir(), key=lambda path: path.name == file.name):
            os.replace(path, ZOO / path.name)
    if options.remove:
        for ending in (".mpt", ".csv", ".png", ".md", ".tflite", "_lce.tflite"):
            (ZOO / f"{options.remove}{ending}").unlink(missing_ok=True)


def check(parser, options, presets):
    """End with a message if arguments don't fit together."""
    if options.run and not (options.name and options.data and options.trained):
        parser.error("a run needs --name, --data and --trained")
    if not options.name and (options.note or options.dense):
        parser.error("--note and --dense need --name")
    if options.name and options.remove:
        parser.error("--remove goes without --name")
    for flag, name in (("name", None if options.run else options.name), ("remove", options.remove)):
        if name and name not in presets:
            parser.error(f"--{flag} must be a preset's: {', '.join(presets)}. Received: {name}")
    try:
        options.dense = dense(options.dense) if options.dense else None
    except ValueError as error:
        parser.error(str(error))


def change(presets, options, draft):
    """Do what the arguments say about the preset --name."""
    if options.run or options.note is None:
        import cifar10

        test = cifar10.load(options.data_dir)["test"]
        if options.run:
            new, old = publish(options.run, options, test, draft), presets.get(options.name)
            new["default"] |= bool(old and old["default"])
            for preset in presets.values():
                preset["default"] &= not (new["default"] and preset["architecture"] == new["architecture"])
            presets[options.name] = new
        preset = presets[options.name]
        preset["converted"] = convert(preset, test, draft)
        print(f"{options.name}: {preset['accuracy']:.2%}")
    presets[options.name]["dense"] = options.dense or presets[options.name]["dense"]
    if options.note is not None:
        presets[options.name]["note"] = options.note


def write_texts(presets, draft):
    """Write presets.json, cards, and the README with a table for each data set."""
    (draft / "presets.json").write_text(json.dumps(presets, indent=1) + "\n", encoding="utf-8")
    tables = {}
    for preset in presets:
        text, cells = card(preset, draft)
        (draft / f"{preset['name']}.md").write_text(text, encoding="utf-8")
        tables[preset["data"]] = tables.get(preset["data"], row(HEADER) + row(["---"] * len(HEADER))) + cells
    text = "\n".join(f"Trained and tested on {data}:\n\n{table}" for data, table in tables.items())
    (draft / "README.md").write_text(README.replace("{tables}", text), encoding="utf-8")


def removed(presets, name):
    """Return the entries without one; if it was a default, the best of its kind becomes it."""
    gone = presets.pop(name)
    rest = [p for p in presets.values() if all(p[key] == gone[key] for key in ("architecture", "dataset"))]
    if gone["default"] and rest:
        max(rest, key=lambda preset: preset["accuracy"])["default"] = True
    return presets


if __name__ == "__main__":
    main()
