"""Time of inference with MPT layers in Keras over that of the stripped model, which has plain layers.

    python -m benchmarks.inference
    KERAS_BACKEND=jax python -m benchmarks.inference

`predict_on_batch` of the model after some training steps, and of its ticket as `load_ticket` gives it, whose layers
hold their kernels; medians over interleaved rounds. Writes `benchmarks/results/inference_<backend>.json`, where rows of
networks that are not measured again stay, and prints a table.
"""

import argparse
import statistics
import tempfile

import keras

import keras_mpt
from benchmarks import networks
from benchmarks.rounds import interleaved, ratio, rows_of, save, where
from benchmarks.step_time import keras_step

STRIPPED, LOADED, TRAINED = "stripped", "loaded ticket", "keras_mpt"


def measure(name, batch, rounds):
    model = networks.ticket(name)
    step = keras_step(model, batch, jit_compile=keras.backend.backend() == "jax")
    for _ in range(3):
        step()
    images, _ = networks.data(batch)
    with tempfile.TemporaryDirectory() as folder:
        loaded = keras_mpt.load_ticket(keras_mpt.save_ticket(model, f"{folder}/ticket.mpt").path)
    models = {STRIPPED: keras_mpt.models.strip(model), LOADED: loaded, TRAINED: model}
    contestants = {title: lambda model=model: model.predict_on_batch(images) for title, model in models.items()}
    seconds = interleaved(contestants, rounds, warm_up=2)
    rows = []
    for title, times in seconds.items():
        row = {"network": networks.NETWORKS[name][0], "batch": batch, "name": title}
        row |= {"milliseconds": 1e3 * statistics.median(times), "ratio": ratio(times, seconds[STRIPPED])}
        rows.append(row)
        numbers = f"{row['milliseconds']:9.1f} ms{row['ratio']:8.3f}"
        print(f"{row['network']:18}batch {batch:4}  {title:14}{numbers}", flush=True)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=networks.NETWORKS, default=list(networks.NETWORKS))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 128])
    parser.add_argument("--rounds", type=int, default=25)
    arguments = parser.parse_args()
    rows = []
    for name in arguments.networks:
        for batch in arguments.batch:
            rows += measure(name, batch, arguments.rounds)
    measured = {networks.NETWORKS[name][0] for name in arguments.networks}
    rows += [row for row in rows_of(f"inference_{where()}") if row["network"] not in measured]
    save(f"inference_{where()}", {"rounds": arguments.rounds, "rows": rows})


if __name__ == "__main__":
    main()
