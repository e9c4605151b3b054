"""Gather what the page "Try a ticket in your browser" needs, in docs/browser/build: LiteRT.js, and tickets as files.

Both tickets are converted, for batches of one, which LiteRT.js asks for, and as float32 networks to compare with.

    npm ci --prefix docs/browser
    python docs/browser/build.py
"""

import json
import pathlib
import shutil

import keras_mpt

HERE = pathlib.Path(__file__).resolve().parent
BUILD = HERE / "build"
MODULES = HERE / "node_modules"
WASM = ("litert_wasm_internal", "litert_wasm_compat_internal")  # the second for browsers without relaxed SIMD
DIGITS = {"classes": [str(digit) for digit in range(10)]}


def copy_runtime():
    """Copy LiteRT.js, with imports that a browser resolves without an import map, and the search's shim for file://."""
    (BUILD / "wasm").mkdir(parents=True, exist_ok=True)
    core = (MODULES / "@litertjs/core/dist/index.js").read_text(encoding="utf-8")
    bare = '"@litertjs/wasm-utils"'
    if bare not in core:
        raise RuntimeError(f"LiteRT.js imports no {bare} any more: see its package.json")
    (BUILD / "litert.js").write_text(core.replace(bare, '"./wasm-utils.js"'), encoding="utf-8")
    shutil.copyfile(MODULES / "@litertjs/wasm-utils/dist/index.js", BUILD / "wasm-utils.js")
    shutil.copyfile(MODULES / "iframe-worker/shim/index.js", BUILD / "iframe-worker.js")
    for name in WASM:
        for ending in ("js", "wasm"):
            shutil.copyfile(MODULES / f"@litertjs/core/wasm/{name}.{ending}", BUILD / f"wasm/{name}.{ending}")


def best():
    """Return the most accurate of the published tickets of 32x32 pixels."""
    small = [p for p in keras_mpt.zoo.list_presets() if tuple(p.arguments.get("input_shape", (32, 32, 3)))[0] == 32]
    return max(small, key=lambda preset: preset.accuracy)


def convert(name, ticket, about):
    """Convert a ticket to `NAME.tflite` and `NAME_float32.tflite`; return what the page says of it."""
    found = {"ticket": pathlib.Path(ticket).stat().st_size, **about}
    for file, weights in ((f"{name}.tflite", "auto"), (f"{name}_float32.tflite", "float32")):
        report = keras_mpt.convert.to_tflite(ticket, BUILD / file, weights=weights, labels=about["classes"])
        found["shape"] = list(report.inputs[0].shape)
        found["file" if weights == "auto" else "float32"] = {"name": file, "bytes": report.bytes, "gzip": report.gzip}
    return found


def main():
    BUILD.mkdir(exist_ok=True)
    copy_runtime()
    preset = best()
    about = {key: getattr(preset, key) for key in ("name", "mean", "std", "classes", "accuracy", "data")}
    models = {
        "digits": convert("digits", HERE / "digits.mpt", DIGITS),
        "pictures": convert("pictures", preset.published(), about),
    }
    (BUILD / "models.json").write_text(json.dumps(models, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
