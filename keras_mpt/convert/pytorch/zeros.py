"""Where PyTorch's sign(0) = 0 matters: quantizers here have sign(0) = 1."""

import contextlib

import keras
import numpy as np
from keras import ops

from keras_mpt._keras import layers_inside
from keras_mpt.convert.pytorch.reading import CheckpointError
from keras_mpt.layers import MPTLayer
from keras_mpt.quantizers import is_sign

_SIDE = 32  # where the model takes images of any size


def check_signs_of_zero(model, name):
    """Raise CheckpointError if the model takes signs of exact zeros on a random sample.

    Sums of random numbers are hardly ever zero, but a channel without a kept weight is, and sums of signs are where no
    batch normalization follows.
    """
    zeros = {}
    with _watched(model, zeros) as watched:
        if watched:
            rng = np.random.default_rng(0)
            shapes = [[1, *(n or _SIDE for n in x.shape[1:])] for x in model.inputs]
            samples = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
            model(samples if len(samples) > 1 else samples[0], training=False)
    for layer, count in zeros.items():
        if count:
            raise CheckpointError(
                f"{name}: layer {layer!r} takes the sign of {count} activations that are exactly 0 (a channel whose "
                "weights are all removed, or sums of signs without batch normalization). PyTorch's sign(0) is 0, that "
                "of the quantizer is 1: outputs would differ. Use input_quantizer="
                "keras_mpt.quantizers.SteTern(threshold_value=0.0), whose value is PyTorch's."
            )


@contextlib.contextmanager
def _watched(model, zeros):
    """Count the zeros that quantizers with sign(0) = 1 get, by the names of their layers."""
    originals = []

    def watch(layer, attribute):
        quantizer = getattr(layer, attribute, None)
        if quantizer is None or not is_sign(quantizer):
            return

        def counting(x):
            zeros[layer.name] = zeros.get(layer.name, 0) + int(np.sum(ops.convert_to_numpy(x) == 0))
            return quantizer(x)

        originals.append((layer, attribute, quantizer))
        setattr(layer, attribute, counting)

    for layer in layers_inside(model):
        if isinstance(layer, MPTLayer):
            watch(layer, "input_quantizer")
        elif isinstance(layer, keras.layers.Activation):
            watch(layer, "activation")
    try:
        yield bool(originals)
    finally:
        for layer, attribute, quantizer in originals:
            setattr(layer, attribute, quantizer)
