"""A published ticket as files for phones, compared with the Keras model.

    python examples/phone.py

Converts an MPT-1/1 for LiteRT and for larq-compute-engine, and runs and times the files on this machine. Needs the
extras tensorflow, litert and lce.
"""

import argparse
import pathlib
import tempfile

import numpy as np

import keras_mpt

NAME = "conv4_mpt11_s50_float_stem"


def main():
    print(keras_mpt.zoo.list_presets(activations="binary"), "\n")
    preset = keras_mpt.zoo.get_preset(NAME)
    images = preset.preprocess(preset.golden_images())  # noise; for pictures, the largest logit names the class
    expected = preset.model().predict(images, verbose=0)
    with tempfile.TemporaryDirectory() as folder:
        for target, convert in {"tflite": keras_mpt.convert.to_tflite, "lce": keras_mpt.convert.to_lce}.items():
            report = convert(NAME, pathlib.Path(folder) / f"{target}.tflite", samples=images)
            logits = keras_mpt.convert.run(report.path, target, images)
            print(f"{report}\n\nLargest difference to Keras: {np.abs(logits - expected).max():.2g}")
            print(f"Milliseconds for an image here: {1e3 * keras_mpt.convert.latency(report.path, target):.2f}\n")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
