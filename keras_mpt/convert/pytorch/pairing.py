"""Match the layers of a Keras model with the keys of a state dict."""

import keras
import numpy as np

from keras_mpt.convert.pytorch import arrays
from keras_mpt.convert.pytorch.reading import CheckpointError
from keras_mpt.layers import MPTLayer
from keras_mpt.models.paths import check_functional
from keras_mpt.tickets.matching import owners

EPSILON = 1e-5  # of PyTorch's batch normalization


def check_model(model, quantizers, epsilon):
    """Raise ValueError unless PyTorch's code supports all layers with weights.

    Args:
        model: A Keras model.
        quantizers: Allowed classes of kernel quantizers.
        epsilon: Required epsilon of batch normalization.
    """
    check_functional(model, "compared to PyTorch's")
    layers = _with_weights(model)
    for path, layer in layers.items():
        if isinstance(layer, MPTLayer) and type(layer.kernel_quantizer) not in quantizers:
            raise ValueError(
                f"`model` must have the kernel quantizer {' or '.join(c.__name__ for c in quantizers)}. "
                f"Received: layer {path!r} with {layer.kernel_quantizer}"
            )
        if isinstance(layer, keras.layers.BatchNormalization):
            if not np.isclose(layer.epsilon, epsilon, rtol=1e-6, atol=0):
                raise ValueError(
                    f"`model` must have the epsilon of PyTorch's batch normalization, {epsilon}. "
                    f"Received: layer {path!r} with epsilon={layer.epsilon}"
                )
        elif not isinstance(layer, arrays.KERNELS):
            raise ValueError(
                "`model` must have weights in convolutions, dense layers and batch normalization only to be compared "
                f"to PyTorch's. Received: layer {path!r} of type {type(layer).__name__}"
            )
        if getattr(layer, "data_format", None) == "channels_first":
            raise ValueError(f"`model` must have channels last. Received: layer {path!r} with channels first")
    if not any(isinstance(layer, MPTLayer) for layer in layers.values()):
        raise ValueError(f"`model` must have layers of keras_mpt. Received: {model.name!r} without one")


def _with_weights(model):
    """Return the layers with weights by path; the state of random generators, as in dropout, does not count."""
    return {path: layer for path, layer in owners(model) if layer.weights}


def pair(model, modules):
    """Return `(layer, module)` by path for all layers with weights; `modules` are names by path."""
    layers = _with_weights(model)
    if set(layers) != set(modules):
        raise ValueError(
            "`mapping` must have the layers with weights and no others. "
            f"Missing: {sorted(set(layers) - set(modules))}. Unknown: {sorted(set(modules) - set(layers))}"
        )
    names = [*modules.values()]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"`mapping` must have another module for each layer. Received twice: {twice}")
    return {path: (layer, modules[path]) for path, layer in layers.items()}


def norm_variables(layer):
    """Return the variables of batch normalization by their names in PyTorch."""
    names = {
        "weight": layer.gamma,
        "bias": layer.beta,
        "running_mean": layer.moving_mean,
        "running_var": layer.moving_variance,
    }
    return {name: variable for name, variable in names.items() if variable is not None}


def parameters(layer, layout):
    """Return the names of a layer's parameters in PyTorch."""
    if isinstance(layer, keras.layers.BatchNormalization):
        return [*norm_variables(layer)]
    scored = [layout.scores, layout.stored] if isinstance(layer, MPTLayer) else []
    return ["weight", *filter(None, scored), *(["bias"] if layer.use_bias else [])]


def check_keys(checkpoint, layers, layout):
    """Raise CheckpointError unless a checkpoint has exactly the keys of these layers."""
    expected = {f"{module}.{name}" for layer, module in layers.values() for name in parameters(layer, layout)}
    missing, extra = expected - set(checkpoint.arrays), set(checkpoint.arrays) - expected
    if missing or extra:
        raise CheckpointError(
            f"{checkpoint.name} is not of this network ({layout.name}, {len(expected)} keys). "
            f"Missing: {_some(missing)}. Not of the network: {_some(extra)}."
        )


def _some(keys):
    shown = sorted(keys)[:6]
    more = f" and {len(keys) - len(shown)} more" if len(keys) > len(shown) else ""
    return ", ".join(map(repr, shown)) + more if keys else "none"


def kernel_variable(layer):
    """Return the variable that PyTorch's `weight` belongs to."""
    return layer.frozen_kernel if isinstance(layer, MPTLayer) else layer.kernel
