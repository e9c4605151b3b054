"""Data sets of a few images, in the formats of the real ones."""

import io

import numpy as np
from PIL import Image


def jpeg(label, shape, random):
    """Return a file of noise that is brighter for higher labels."""
    pixels, file = np.clip(random.normal(25 * label, 20, shape), 0, 255).astype(np.uint8), io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def small_cifar10(path):
    """Write an npz file of JPEG images as examples/recipes/cifar10.py reads it: 96 for training, 32 for the test."""
    random, arrays = np.random.default_rng(0), {}
    for split, size in (("train", 96), ("test", 32)):
        labels = random.integers(0, 10, size)
        blobs = [jpeg(label, (32, 32, 3), random) for label in labels]
        arrays[f"{split}_jpeg"] = np.frombuffer(b"".join(blobs), np.uint8)
        arrays[f"{split}_size"] = np.array([len(blob) for blob in blobs])
        arrays[f"{split}_label"] = labels
    np.savez(path, **arrays)
    return path
