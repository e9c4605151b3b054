"""Where PyTorch's sign(0) = 0 matters: quantizers here have sign(0) = 1."""

import collections

import keras
import numpy as np
from keras import ops

from keras_mpt._keras import functional_graph, layers_inside
from keras_mpt.convert.pytorch.reading import CheckpointError
from keras_mpt.models.copies import autocast, first_input
from keras_mpt.models.plain import input_quantizer
from keras_mpt.models.rewrite import run
from keras_mpt.ops import to_numpy
from keras_mpt.quantizers import is_sign

_SIDE = 32  # where the model takes images of any size


def check_signs_of_zero(model, name):
    """Raise CheckpointError if the model takes signs of exact zeros on a random sample.

    Sums of random numbers are hardly ever zero, but a channel without a kept weight is, and sums of signs are where no
    batch normalization follows.
    """
    if not any(map(_takes_signs, layers_inside(model))):
        return
    zeros = collections.Counter()

    def step(path, operation, args, kwargs):
        if functional_graph(operation) is not None:
            return run(operation, first_input(args, kwargs), step, path)
        if _takes_signs(operation):
            zeros[operation.name] += int(np.sum(to_numpy(autocast(operation, first_input(args, kwargs))) == 0))
        return operation(*args, **kwargs)

    rng = np.random.default_rng(0)
    shapes = [[1, *(n or _SIDE for n in x.shape[1:])] for x in model.inputs]
    run(model, [ops.convert_to_tensor(rng.normal(size=shape).astype(np.float32)) for shape in shapes], step)
    for layer, count in zeros.items():
        if count:
            raise CheckpointError(
                f"{name}: layer {layer!r} takes the sign of {count} activations that are exactly 0 (a channel whose "
                "weights are all removed, or sums of signs without batch normalization). PyTorch's sign(0) is 0, that "
                "of the quantizer is 1: outputs would differ. Use input_quantizer="
                "keras_mpt.quantizers.SteTern(threshold_value=0.0), whose value is PyTorch's."
            )


def _takes_signs(layer):
    return is_sign(layer.activation if isinstance(layer, keras.layers.Activation) else input_quantizer(layer))
