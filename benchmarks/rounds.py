"""How everything here is timed, and where results go."""

import json
import os
import pathlib
import platform
import statistics
import time

import keras

RESULTS = pathlib.Path(__file__).parent / "results"
CPUINFO = pathlib.Path("/proc/cpuinfo")
INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "asimddp", "i8mm", "bf16")


def interleaved(contestants, rounds, repeat=1, warm_up=1, before=0):
    """Return {name: list of seconds, one for each round}.

    All contestants take turns in one process, so that a drift of the machine's speed hits all alike.

    Args:
        contestants: {name: function without arguments}.
        rounds: Number of turns.
        repeat: Calls in a turn; its time is their mean.
        warm_up: Calls of each before the first round, for compilation.
        before: Calls in each turn before those that are timed, for caches.
    """
    for run in contestants.values():
        for _ in range(warm_up):
            run()
    seconds = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            for _ in range(before):
                run()
            start = time.perf_counter()
            for _ in range(repeat):
                run()
            seconds[name].append((time.perf_counter() - start) / repeat)
    return seconds


def ratio(seconds, base):
    """Return the median over the rounds of the ratio of two contestants' times."""
    return statistics.median(mine / other for mine, other in zip(seconds, base, strict=True))


def save(name, content):
    """Write `benchmarks/results/<name>.json`, with the machine."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps({"machine": machine(), **content}, indent=1) + "\n")


def load(name):
    """Return what was saved, None if nothing was."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def rows_of(name):
    """Return the rows of what was saved, none if nothing was."""
    return (load(name) or {"rows": []})["rows"]


def where():
    """Return the backend, `"jax"` or, on a GPU, `"jax_gpu"`: the end of a result's name."""
    return keras.backend.backend() + ("_gpu" if accelerators() else "")


def machine():
    """Return what the results were measured on."""
    lines = CPUINFO.read_text().splitlines() if CPUINFO.exists() else []
    named = (line.split(": ")[1] for line in lines if line.startswith("model name"))
    return {
        "processor": next(named, platform.processor()),
        "instructions": instructions(),
        "cores": os.cpu_count(),
        "keras": keras.__version__,
        **accelerators(),
    }


def instructions():
    """Return the architecture and which of the instructions that matter here this processor has."""
    flags = set(CPUINFO.read_text().split()) if CPUINFO.exists() else set()
    return [platform.machine(), *(flag for flag in INSTRUCTIONS if flag in flags)]


def accelerators():
    """Return the GPUs that the backend uses, if any."""
    if keras.backend.backend() == "torch":
        import torch

        devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    else:
        devices = [device for device in keras.distribution.list_devices() if not device.startswith("cpu")]
    return {"accelerators": devices} if devices else {}
