"""Convert ordinary Keras models to MPT layers."""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_mpt import initializers, layers, quantizers
from keras_mpt._keras import layers_inside
from keras_mpt._types import Names
from keras_mpt.arguments import did_you_mean, shown
from keras_mpt.layers.twins import DEFAULT_SPARSITY, PlainTwin
from keras_mpt.masks import MaskRule
from keras_mpt.models.copies import inside_wrapper
from keras_mpt.models.paths import check_is_model, mpt_layers, walk
from keras_mpt.models.ranges import never_negative
from keras_mpt.models.replacing import with_twins
from keras_mpt.models.rewrite import check_model
from keras_mpt.ops import to_numpy

_METRICS = ("metrics", "weighted_metrics")


def to_mpt(
    model: keras.Model,
    sparsity: float | dict[str, float] | Callable | None = None,
    *,
    kernel_initializer: Any = "signed_constant",
    kernel_quantizer: Any = "scaled_sign",
    input_quantizer: Any = None,
    mask: MaskRule | Callable | None = None,
    only: Names | None = None,
    skip: Names = (),
    seed: int | None = None,
) -> keras.Model:
    """Return a copy of an ordinary model whose layers select weights of random kernels instead of training theirs.

    The layers of `keras_mpt.layers.TWINS` (dense layers, convolutions, attention, recurrent layers, embeddings; you may
    add classes) become the MPT layers of the same name, also inside `TimeDistributed`, `Bidirectional` and `RNN`. They
    keep their activation, bias, strides, padding, dtype and all other arguments, except for regularizers and
    constraints of the kernels, which have no meaning for frozen kernels (a warning lists them). All other layers are
    copied, MPT layers included: call `to_mpt` again to convert some layers with other arguments. Layers with matrices
    but without an MPT twin, such as `ConvLSTM2D`, are copied, and listed in a warning with their share of the weights
    unless `skip` names them. The copy of a compiled model is compiled likewise, with a fresh optimizer. Layers that are
    not `trainable` stay so: their scores are not trained. `model` itself does not change. To select from the kernels of
    a trained model, call `to_jackpot`.

    Binary inputs: the sign of a ReLU's output is always +1, and so is that of pixels from 0 to 255 (a warning names
    the layers with such inputs). For `input_quantizer="approx_sign"`, convert a model without ReLUs between its layers,
    and its first layer in a separate call.

    Args:
        model: A built functional or Sequential model. It may have nested models and shared layers.
        sparsity: Fraction of the weights removed in each layer; default 0.5. Or a dict from the paths of layers to
            fractions, 0.5 for layers that it leaves out. A path is the name of the layer, `"model/layer"` in a nested
            model, `"bidirectional/forward_lstm"` in a wrapper; attention has a single path. Or a function that returns
            such a dict for a dict of the model's kernels, such as `magnitude_sparsity(0.9)`; several kernels of a layer
            are passed as one flat array.
        kernel_initializer: Initializer of the frozen kernels. See `keras_mpt.initializers`.
        kernel_quantizer: See `MPTLayer`.
        input_quantizer: See `MPTLayer`. It is not applied to embeddings, whose inputs are integers; attention must be
            skipped.
        mask: Replaces `TopK(sparsity)`: a rule of `keras_mpt.masks` for all layers, such as a `GlobalTopK`, or a
            function that returns a layer's rule for its sparsity, such as `lambda s: TopK(s, selector="sort")`.
        only: Layers to convert: a list of paths (that of a nested model means all its layers) and classes of layers.
        skip: Layers not to convert, in the same form.
        seed: Integer in `[0, 2**64)` from which the layers' seeds are derived, in the order of the model and
            independent of `only` and `skip`; None draws one.

    Returns:
        A new model of the same class, with the same names.

    Raises:
        ValueError: `model` is subclassed or not built, an argument is out of range or names no layer, or no layer is
            left to convert.
        TypeError: `model` is not a Keras model.

    Examples:
        >>> model = keras.applications.MobileNetV2((96, 96, 3), weights=None, classes=10)
        >>> ticket = keras_mpt.models.to_mpt(model, sparsity=0.8, skip=["predictions"], seed=0)
    """
    chosen = chosen_layers(model, only, skip)
    rules, seeds = mask_rules(chosen, sparsity, mask), seeds_of(model, seed)
    settings = {
        "kernel_initializer": kernel_initializer or "signed_constant",
        "kernel_quantizer": quantizers.get_kernel(kernel_quantizer),
        "input_quantizer": quantizers.get_activation(input_quantizer),
    }
    arguments = {path: {**settings, **rules[path], "seed": seeds[path]} for path in chosen}
    result, _ = with_mpt_layers(model, chosen, arguments)
    return result


def with_mpt_layers(model, chosen, arguments, pretrained=False):
    """Return a copy of a model with MPT layers in the place of some layers, and these MPT layers.

    Args:
        model: The model.
        chosen: Dict from paths to layers, see `chosen_layers`.
        arguments: Dict from paths to dicts of arguments of `PlainTwin.from_plain`.
        pretrained: Whether the frozen kernels are those of the model.
    """
    for path, layer in chosen.items():
        if isinstance(layer, keras.layers.Embedding):  # its inputs are indices
            arguments[path]["input_quantizer"] = None
    _warn_of_constant_signs(model, arguments)
    makers = {
        id(layer): functools.partial(layers.TWINS[type(layer)].from_plain, layer, **arguments[path])
        for path, layer in chosen.items()
    }
    result, twins = with_twins(model, makers, kernels=pretrained)
    _compile(result, model)
    return result, list(twins.values())


def _has_leaves(layer):
    """Return whether the inner layers of a layer can be converted: it is a model, or a wrapper of other layers."""
    inside = inside_wrapper(layer)
    return isinstance(layer, keras.Model) or inside and not any(isinstance(inner, keras.Model) for inner in inside)


def _leaves(model):
    """Return the layers that are neither models nor wrappers, by path, in the order of the model."""
    leaves = {}
    for path, layer in walk(model, _has_leaves):
        if isinstance(layer, keras.Model):
            check_model(layer, "converted")
        elif not _has_leaves(layer):
            leaves[path] = layer
    return leaves


def _convertible(layer):
    twin = layers.TWINS.get(type(layer))
    if twin is None:
        return False
    is_twin = isinstance(twin, type) and issubclass(twin, PlainTwin) and issubclass(twin, type(layer))
    if not is_twin or twin._plain_class() is not type(layer):
        raise ValueError(
            f"`layers.TWINS` must give a class that derives from MPTLayer and {type(layer).__name__}, in this order, "
            f"for layer {layer.name!r}. Received: {shown(twin)}"
        )
    parts = [layer, *layers_inside(layer)]
    return not any(getattr(part, "quantization_mode", None) or getattr(part, "lora_enabled", False) for part in parts)


def convertible_layers(model):
    """Return the layers that can be converted, by path.

    Raises:
        ValueError: `layers.TWINS` gives a class that derives from another one.
    """
    check_is_model(model)
    check_model(model, "converted")
    return {path: layer for path, layer in _leaves(model).items() if _convertible(layer)}


def chosen_layers(model, only, skip):
    """Return the layers to convert, by path; warn of others, and of what the chosen ones lose.

    Args:
        model: The model.
        only, skip: See `to_mpt`.

    Raises:
        ValueError, TypeError: See `to_mpt`.
    """
    convertible, leaves = convertible_layers(model), _leaves(model)
    if not convertible:
        raise ValueError(
            "There must be a layer to convert; those that are quantized or have low-rank weights (LoRA) are not, nor "
            f"classes that are missing in `keras_mpt.layers.TWINS`. Received: model {model.name!r} with {_found(model)}"
        )
    skipped = _named("skip", skip, leaves, model)
    wanted = convertible if only is None else _named("only", only, convertible, model)
    chosen = {path: layer for path, layer in convertible.items() if path in wanted and path not in skipped}
    if not chosen:
        what = "There must be a layer to convert: `only` and `skip` leave none."
        raise ValueError(f"{what} Received: {only=}, {skip=}, of {list(convertible)}")
    if only is None:
        _warn_of_others({path: layer for path, layer in leaves.items() if path not in skipped}, model)
    _warn_of_losses(chosen)
    return chosen


def _found(model):
    """Describe a model without layers to convert."""
    return "MPT layers, which it can be trained as" if mpt_layers(model) else "none"


def _named(argument, which, layers_by_path, model):
    """Return the paths of the layers that an argument names."""
    found = set()
    if not isinstance(which, (str, type, list, tuple, set)):
        raise ValueError(f"`{argument}` must be a list of paths and classes of layers. Received: {which!r}")
    for item in [which] if isinstance(which, (str, type)) else which:
        if isinstance(item, str):
            paths = [path for path in layers_by_path if path == item or path.startswith(f"{item}/")]
        elif isinstance(item, type):
            wrappers = [(path, layer) for path, layer in walk(model, _has_leaves) if inside_wrapper(layer)]
            around = [path for path, layer in wrappers if isinstance(layer, item)]
            paths = [
                path
                for path, layer in layers_by_path.items()
                if isinstance(layer, item) or any(path.startswith(f"{outer}/") for outer in around)
            ]
        else:
            raise ValueError(f"`{argument}` must hold paths and classes of layers. Received: {item!r}")
        if not paths:
            raise _unknown(argument, item, layers_by_path)
        found.update(paths)
    return found


def _unknown(argument, item, paths):
    inside = [path for path in paths if path.endswith(f"/{item}")]
    near = f" Did you mean {inside[0]!r}?" if inside else did_you_mean(item, paths)
    hint = near or f" There are: {', '.join(paths)}"
    what = "layers of the model" if argument == "skip" else "layers that are converted"
    return ValueError(f"`{argument}` must name {what}. Received: {item!r}.{hint}")


def mask_rules(chosen, sparsity, mask):
    """Return the arguments of each layer that determine its mask, by path: see `to_mpt`."""
    if isinstance(mask, type) and getattr(mask, "shared", False):
        raise ValueError(f"`mask` must be an object, such as {mask.__name__}(0.9). Received: the class")
    if isinstance(mask, MaskRule):
        if sparsity is not None:
            raise ValueError(f"`sparsity` must be left out where `mask` is a rule. Received: {sparsity=}, {mask=}")
        return dict.fromkeys(chosen, {"mask": mask})
    if mask is not None and not callable(mask):
        raise ValueError(f"`mask` must be a rule of keras_mpt.masks, or a function that makes one. Received: {mask=}")
    if callable(sparsity):
        sparsity = sparsity({path: kernel_of(layer) for path, layer in chosen.items()})
        if not isinstance(sparsity, dict):
            raise ValueError(f"`sparsity` must return a dict from paths to fractions. Received: {shown(sparsity)}")
    for path in sparsity if isinstance(sparsity, dict) else ():
        if path not in chosen:
            raise _unknown("sparsity", path, chosen)
    fractions = sparsity if isinstance(sparsity, dict) else dict.fromkeys(chosen, sparsity)
    rules = {}
    for path in chosen:
        fraction = DEFAULT_SPARSITY if fractions.get(path) is None else fractions[path]
        rules[path] = {"sparsity": fraction} if mask is None else {"mask": mask(fraction)}
        if mask is not None and not isinstance(rules[path]["mask"], MaskRule):  # None would be a layer's default
            received = shown(rules[path]["mask"])
            raise ValueError(f"`mask` must return a rule of keras_mpt.masks. Received: {received} for {path!r}")
    return rules


def seeds_of(model, seed):
    """Return a seed for each layer that is or could be an MPT layer, by path: two calls use different seeds."""
    leaves = _leaves(model).items()
    paths = [path for path, layer in leaves if type(layer) in layers.TWINS or isinstance(layer, PlainTwin)]
    return dict(zip(paths, initializers.layer_seeds(seed), strict=False))


def _warn_of_losses(chosen):
    lost = []
    for path, layer in chosen.items():
        prefixes, config = layers.TWINS[type(layer)]._kernels.values(), layer.get_config()
        arguments = [f"{prefix}_{what}" for prefix in prefixes for what in ("regularizer", "constraint")]
        lost += [f"{path} ({argument})" for argument in arguments if config.get(argument) is not None]
    if lost:
        _warn(f"Frozen kernels have neither regularizers nor constraints; dropped: {', '.join(lost)}")


def _warn_of_others(leaves, model):
    others, changed, weights, total = {}, [], {}, model.count_params()
    for path, layer in leaves.items():
        kind, has_matrix = type(layer).__name__, any(len(weight.shape) > 1 for weight in layer.weights)
        if not has_matrix or _convertible(layer) or isinstance(layer, PlainTwin):
            continue
        if type(layer) in layers.TWINS:
            changed.append(path)
        else:
            others.setdefault(kind, []).append(path)
            weights[kind] = weights.get(kind, 0) + layer.count_params()
    if changed:
        _warn(
            "These layers are quantized or have low-rank weights (LoRA), and stay as they are; for their twins, take "
            f"the model from before that (name them in `skip` to be silent): {', '.join(changed)}"
        )
    if others:
        kinds = sorted(others, key=lambda kind: -weights[kind])
        listed = "; ".join(f"{kind} ({weights[kind] / total:.2%}): {', '.join(others[kind])}" for kind in kinds)
        _warn(
            f"These layers have no MPT twin and stay as they are, floats with {sum(weights.values()) / total:.2%} of "
            "the model's weights (name them in `skip` to be silent; for a class of your own, write an MPT layer and "
            f"add it to `keras_mpt.layers.TWINS`): {listed}"
        )


def _warn_of_constant_signs(model, arguments):
    signs = [path for path, given in arguments.items() if quantizers.is_sign(given["input_quantizer"])]
    found = never_negative(model) if signs else []
    constant = [path for path in signs if path in found]
    if constant:
        _warn(
            "The inputs of these layers are never negative, so that all their signs are +1 and nothing can be learned "
            "from them; leave out the ReLU before a layer, or convert the layer in a call of `to_mpt` without "
            f"`input_quantizer`: {', '.join(constant)}"
        )


def _compile(result, model):
    if model.compiled:
        try:
            config = model.get_compile_config()
            unusable = _unusable_metrics([(config or {}).get(name) for name in _METRICS])
            if unusable:
                config = {**config, **dict.fromkeys(_METRICS)}
                _warn(
                    "The model was compiled without metrics: Keras cannot compute all that the model has, as those of "
                    f"files of Keras 2; `compile` it for others. Received: {', '.join(unusable)}"
                )
            result.compile_from_config(config)
        except Exception as error:  # an object of the user's that Keras cannot make again, whatever it raises
            _warn(f"The model could not be compiled as the one that it was made of; `compile` it. {error}")


def _unusable_metrics(config):
    """Return the names of the metrics in a config whose function is only a name, which Keras does not look up."""
    if isinstance(config, dict):
        if isinstance(config.get("fn"), str):
            return [str(config.get("name", config["fn"]))]
        config = list(config.values())
    return sum(map(_unusable_metrics, config), []) if isinstance(config, (list, tuple)) else []


def _warn(message):
    warnings.warn(message, stacklevel=5)


def kernel_of(layer):
    """Return the kernel of a plain layer as a float32 array; several kernels become one flat array."""
    kernels = [to_numpy(kernel, "float32") for kernel, _ in layers.TWINS[type(layer)].kernels_of(layer)]
    return kernels[0] if len(kernels) == 1 else np.concatenate([kernel.ravel() for kernel in kernels])
