"""Arguments of MPT layers, Keras' and ours: one signature, and checks."""

import inspect

import keras
import numpy as np
from keras import ops

from keras_mpt import _keras
from keras_mpt.arguments import check_bool, check_count, check_instance, is_count, received

# Arguments of Keras' layers that only make sense for a trained kernel.
FOR_TRAINED_KERNELS = ("lora_rank", "lora_alpha", "gptq_unpacked_column_size", "quantization_config")
_COUNTS = ("units", "filters", "input_dim", "output_dim", "groups", "depth_multiplier", "num_heads", "key_dim")
_COUNTS += ("head_dim", "num_query_heads", "num_key_value_heads")
_SIZES = ("kernel_size", "strides", "dilation_rate")
_SWITCHES = ("use_bias", "trainable", "mask_zero", "return_sequences", "return_state", "go_backwards", "stateful")
_SWITCHES += ("unroll", "reset_after", "unit_forget_bias", "use_gate", "zero_output_for_mask")


def of(cls):
    """Return the arguments of a class, without `self` and `**kwargs`, as `inspect.Parameter` by name."""
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    return {p.name: p for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD}


def show(cls):
    """Give an MPT class a signature of all its arguments, for `help`: Keras' own, then ours."""
    try:
        plain = cls._plain_class()
    except StopIteration:  # a mixin
        return
    ours = {}
    for base in reversed([b for b in cls.__mro__ if b.__module__.startswith("keras_mpt.") and "__init__" in vars(b)]):
        ours |= {p.name: p for p in of(base).values() if p.kind is inspect.Parameter.KEYWORD_ONLY}
    ours |= {name: p for name, p in _common(keras.layers.Layer).items() if name not in ours}
    kernels = {f"{argument}_initializer" for argument in cls._kernels.values()}
    shown = []
    for name, parameter in of(plain).items():
        if name in cls._meaningless_arguments() or name in ours:
            continue
        default = {"use_bias": False}.get(name, "signed_constant" if name in kernels else parameter.default)
        shown.append(parameter.replace(default=default, annotation=inspect.Parameter.empty))
    cls.__signature__ = inspect.Signature([*shown, *ours.values()])


def _common(layer):
    """Return the arguments that all Keras layers have, keyword-only."""
    return {
        name: parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in of(layer).items()
        if name in ("name", "dtype", "trainable")
    }


def takes_training(cls, call):
    """Return whether the `call` that an MPT class inherits from its Keras layer takes `training`.

    Raises:
        TypeError: It takes more than that and the inputs, which `MPTLayer.call` would not pass on.
    """
    parameters = inspect.signature(call).parameters.values()
    named = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    more = [name for name in named[2:] if name != "training"]
    if more:
        whose = call.__qualname__.split(".")[-2]
        raise TypeError(
            f"The `call` of {whose} must take the inputs only, and `training`. Received: {', '.join(more)} as well. "
            f"Define `call` in {cls.__name__}, or let the layer call an MPT layer"
        )
    return "training" in named[2:]


def check_kernels(layer, subnets):
    """Raise ValueError unless the plain class of a layer added all its kernels, of which `subnets` were made."""
    names = [subnet.name for subnet in subnets]
    missing = [name for name in layer._kernels if name not in names]
    if missing:
        raise ValueError(
            f"`build` of {layer._plain_class().__name__} must add weights with the names {list(layer._kernels)}, the "
            f"kernels to mask. Received: none with the name {missing[0]!r}"
        )


def check_frozen_weight(name, settings):
    """Raise ValueError if the arguments of `add_weight` for a kernel have those of a trained one."""
    for argument in ("regularizer", "constraint"):
        if settings.get(argument) is not None:
            raise ValueError(
                f"`{argument}` of the weight {name!r} has no meaning: the kernel is frozen. See `scores_regularizer`. "
                f"{received(argument, settings[argument])}"
            )


def as_floats(inputs, dtype):
    """Return inputs for a quantizer: floats as they are, others (pixels, booleans) in a dtype."""
    is_float = keras.backend.is_float_dtype(keras.backend.standardize_dtype(inputs.dtype))
    return inputs if is_float else ops.cast(inputs, dtype)


def chosen(argument, names, known):
    """Return names given as an argument as a tuple.

    Args:
        argument: Name of the argument.
        names: A list or tuple of names.
        known: The names that there are.

    Raises:
        ValueError: It is no list, or has another name.
    """
    if not isinstance(names, (list, tuple)) or not all(name in known for name in names):
        raise ValueError(f"`{argument}` must be a list with names of {list(known)}. {received(argument, names)}")
    return tuple(names)


def regularizer(argument, identifier):
    """Return what `keras.regularizers.get` does.

    Raises:
        ValueError: Keras knows no such regularizer.
    """
    try:
        found = keras.regularizers.get(identifier)
    except (ValueError, TypeError) as error:
        found, cause = (), error
    else:
        cause = None
    if found is not None and not callable(found):
        raise ValueError(
            f"`{argument}` must be None, a name or config that Keras knows, or a regularizer. "
            f"{received(argument, identifier)}"
        ) from cause
    return found


def checked(given):
    """Return arguments with numpy's integers as Python's, which Keras requires of some.

    Args:
        given: Dict of arguments by name.

    Raises:
        ValueError: A size or switch is of a wrong type, which Keras might misread.
    """
    given = dict(given)
    for name, value in given.items():
        if name in _COUNTS and not (value is None and name == "num_key_value_heads"):
            check_count(name, value)
            given[name] = int(value)
        elif name in _SWITCHES:
            given[name] = check_bool(name, value)
        elif name in _SIZES:
            sizes = value if isinstance(value, (tuple, list)) else [value]
            if not sizes or not all(map(is_count, sizes)):
                raise ValueError(f"`{name}` must be an integer > 0, or a tuple of them. {received(name, value)}")
            given[name] = tuple(map(int, sizes)) if isinstance(value, (tuple, list)) else int(value)
    return given


def checked_mask(mask, shape, name):
    """Return zeros and ones for a layer of this name as booleans; raise ValueError for anything else."""
    mask = np.asarray(mask)
    numbers = mask.dtype.kind in "biufV"  # V: bfloat16
    if mask.shape != shape or not numbers or not np.isin(mask, (0, 1)).all():
        raise ValueError(
            f"`mask` must be zeros and ones of shape {shape} for layer {name!r}. Received: shape {mask.shape}, "
            f"values {np.unique(mask)[:4] if numbers else mask.dtype}"
        )
    return mask != 0


def checked_scores(scores, shape, name):
    """Return scores for a layer of this name as float32; raise ValueError if they are no numbers of the shape."""
    try:
        scores = np.asarray(scores, np.float32)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"`scores` must be numbers of shape {shape} for layer {name!r}. {received('scores', scores)}"
        ) from error
    if scores.shape != shape or np.isnan(scores).any():
        raise ValueError(
            f"`scores` must be numbers of shape {shape} for layer {name!r}. Received: shape {scores.shape}, "
            f"{np.count_nonzero(np.isnan(scores))} NaN"
        )
    return scores


def layers_of(model):
    """Return the MPT layers of a built model.

    Raises:
        TypeError: `model` is no Keras model.
        ValueError: A layer is not built.
    """
    check_instance("model", model, keras.Model, "a Keras model")
    layers = [layer for layer in _keras.layers_inside(model) if hasattr(layer, "_subnets")]
    missing = [layer.name for layer in layers if not layer.built]
    if missing:
        raise ValueError(f"`model` must be built. Received: layers {missing}, which are not")
    return layers
