"""Ranges of the values in a model: layers that never get a negative input, outputs that are probabilities."""

import warnings

import keras
import numpy as np
from keras import activations, layers

from keras_mpt._keras import call_of, functional_graph, output_names
from keras_mpt.models.copies import first_input
from keras_mpt.models.rewrite import run

_NEVER_NEGATIVE = (activations.relu, activations.relu6, activations.sigmoid, activations.hard_sigmoid)
_NEVER_NEGATIVE += (activations.softmax, activations.softplus, activations.exponential)
_OPERATIONS = {"Relu", "Relu6", "Sigmoid", "HardSigmoid", "Softmax", "Softplus", "Exp", "Absolute", "Square", "Sqrt"}
# Operations without negative outputs if they get no negative inputs.
_KEEPING = """
MaxPooling1D MaxPooling2D MaxPooling3D AveragePooling1D AveragePooling2D AveragePooling3D
GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D
GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D
Dropout SpatialDropout1D SpatialDropout2D SpatialDropout3D Flatten Reshape Permute RepeatVector Identity
ZeroPadding1D ZeroPadding2D ZeroPadding3D Cropping1D Cropping2D Cropping3D UpSampling1D UpSampling2D UpSampling3D
Add Average Concatenate Maximum Minimum Multiply GetItem Transpose Cast
""".split()
_PROBABILITIES = (activations.softmax, activations.sigmoid)
_PIXELS = 1 / 200  # a scale as small as this is for pixels from 0 to 255


def never_negative(model):
    """Return the paths of the layers in a functional or Sequential model that provably get no negative input.

    They follow a ReLU or similar, with nothing in between that could turn its values negative, or they get pixels:
    unsigned integers, or inputs of the model that are divided by 255.
    """
    known = {id(x): x for x in model.inputs if x.dtype.startswith("uint")}
    seen, others = {}, set()

    def step(path, operation, args, kwargs):
        if functional_graph(operation) is not None:
            return run(operation, first_input(args, kwargs), step, path)
        given = [x for x in keras.tree.flatten((args, kwargs)) if isinstance(x, keras.KerasTensor)]
        outputs = operation.compute_output_spec(*args, **kwargs)
        rest = [x for x in keras.tree.flatten((args, kwargs)) if not isinstance(x, keras.KerasTensor)]
        index = type(operation).__name__ == "GetItem"
        numbers = [x for x in rest if isinstance(x, (int, float)) and not index or hasattr(x, "__array__")]
        positive = all(id(x) in known for x in given) and all(np.min(x) >= 0 for x in numbers)
        if positive:
            seen[path] = operation
        else:
            others.add(path)
        if _is_never_negative(operation, positive):
            known.update((id(x), x) for x in keras.tree.flatten(outputs))
        return outputs

    run(model, model.inputs, step)
    return [path for path in seen if path not in others]


def warn_of_no_logits(model, loss, stacklevel):
    """Warn if a loss takes an output of a model for logits that is the result of a softmax or sigmoid.

    Args:
        model: The model; outputs of a subclassed one are not known, and pass.
        loss: Its loss, or a list or dict of one for each output, as `compile` takes it.
        stacklevel: See `warnings.warn`, seen from here.
    """
    outputs, losses = getattr(model, "outputs", None) or [], loss if isinstance(loss, (list, tuple)) else [loss]
    if isinstance(loss, dict):
        losses = [loss.get(name) for name in output_names(model)] if outputs else []
    losses = losses * len(outputs) if len(losses) == 1 else losses
    for output, each in zip(outputs, losses, strict=False):
        if getattr(each, "from_logits", False) and gives_probabilities(output):
            warnings.warn(
                "The loss takes logits, but the model ends in a softmax or sigmoid: leave that out, or pass "
                f"from_logits=False. Received: {type(each).__name__} for output {output.name!r} of {model.name!r}",
                stacklevel=stacklevel + 1,
            )


def gives_probabilities(output):
    """Return whether an output of a functional or Sequential model is the result of a softmax or sigmoid."""
    operation, _ = call_of(output)
    if functional_graph(operation) is not None:
        return all(map(gives_probabilities, operation.outputs))
    if isinstance(operation, layers.Layer):
        return isinstance(operation, layers.Softmax) or getattr(operation, "activation", None) in _PROBABILITIES
    return type(operation).__name__ in ("Softmax", "Sigmoid") and type(operation).__module__.startswith("keras.")


def _is_never_negative(operation, positive):
    """Return whether the outputs of an operation are never negative; `positive`: its inputs are not negative."""
    if isinstance(operation, layers.ReLU):
        return operation.negative_slope == 0 and operation.threshold >= 0
    if isinstance(operation, layers.Rescaling):
        scale, offset = (keras.ops.convert_to_numpy(value) for value in (operation.scale, operation.offset))
        return bool(((scale > 0) & (offset >= 0)).all() and (positive or (scale <= _PIXELS).all()))
    if isinstance(operation, layers.Layer) and getattr(operation, "activation", None) in _NEVER_NEGATIVE:
        return isinstance(operation, (layers.Activation, layers.Dense, *_CONVOLUTIONS))
    if not type(operation).__module__.startswith("keras."):
        return False
    name = type(operation).__name__
    return isinstance(operation, layers.Softmax) or name in _OPERATIONS or positive and name in _KEEPING


_CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.Conv3D, layers.DepthwiseConv1D, layers.DepthwiseConv2D)
_CONVOLUTIONS += (layers.SeparableConv1D, layers.SeparableConv2D, layers.Conv2DTranspose)
