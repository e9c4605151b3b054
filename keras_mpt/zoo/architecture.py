"""How a function that describes a network becomes a public builder: the arguments, their defaults and checks."""

import functools
import inspect
import string

import keras

from keras_mpt import initializers, quantizers, tickets
from keras_mpt.arguments import check_count, check_sparsity, did_you_mean, is_count, is_number
from keras_mpt.zoo import presets
from keras_mpt.zoo.network import Network

_DEFAULTS = {
    "input_shape": (32, 32, 3),
    "classes": 10,
    "sparsity": 0.5,
    "input_quantizer": None,
    "kernel_quantizer": "scaled_sign",
    "kernel_initializer": "kaiming_normal",
    "batch_norm_affine": False,
    "float_stem": False,
    "pad_values": 0.0,
    "width": 1.0,
    "seed": None,
    "include_top": True,
    "weights": None,
}

# One form for whatever an argument may be given as.
_FORMS = {
    "input_shape": lambda value: tuple(value) if isinstance(value, list) else value,
    "input_quantizer": lambda value: quantizers.serialize(quantizers.get_activation(value)),
    "kernel_quantizer": lambda value: quantizers.serialize(quantizers.get_kernel(value)),
    "kernel_initializer": lambda value: keras.initializers.serialize(initializers.get(value, "kernel_initializer")),
}

_ARGUMENTS = string.Template("""
Args:
    input_shape: Height, width and channels of an image, default `$input_shape`.
    classes: Number of logits, default $classes.
    sparsity: Fraction of each layer's weights removed, default $sparsity; or a dict from layer names to fractions,
        and $sparsity for the layers that it leaves out; or a `keras_mpt.masks.GlobalTopK`, of which the network gets
        a copy, to prune all layers together.
    input_quantizer: None for MPT-1/32, `"approx_sign"` or another activation quantizer for MPT-1/1.
    kernel_quantizer: `"scaled_sign"` (Biprop) or None (Edge-Popup).
    kernel_initializer: Of the frozen kernels, default `"$kernel_initializer"`; see `keras_mpt.initializers`.
    batch_norm_affine: Whether batch normalization has trainable gamma and beta, default $batch_norm_affine.
    float_stem: Whether the first convolution is an ordinary one with trained weights, default $float_stem.
    pad_values: What the convolutions pad with, default $pad_values; 1.0 keeps the inputs of binary convolutions binary.
        The first convolution sees the image and pads with zeros.
    width: Factor on the number of filters and units, default $width.
    seed: Integer from which each layer's seed is derived in construction order; None (default) draws one.
    include_top: Whether to add the classifier, default $include_top; without, what it would get is returned, before
        global pooling or flattening.
    weights: None (default), or the name or path of a ticket, whose arguments become the defaults (of a file: those
        that its `provenance` says, as examples/train.py writes it). The MPT layers are frozen then. To search on:
        `keras_mpt.load_ticket(keras_mpt.zoo.get_preset(name).path, trainable=True)`.

Returns:
    A functional `keras.Model` from images to logits `(batch, classes)`.

Raises:
    TypeError: An argument's name is unknown.
    ValueError: An argument is out of its range, or not that of the ticket; there is no ticket named `weights`.
    FileNotFoundError: There is no file at the path `weights`.
    TicketError: The file is no ticket, damaged, or one of another network. It is a ValueError.

Example:

>>> model = keras_mpt.zoo.$name(seed=0)
""")


def architecture(details="", /, **defaults):
    """Return a decorator that makes a public builder of `function(network, image)`, which returns the last tensor.

    The builder has the function's name and keyword-only arguments, with these defaults where they differ from the
    common ones. Its docstring is the function's, then `details`, then that of the arguments.
    """
    defaults = {**_DEFAULTS, **defaults}
    keyword = inspect.Parameter.KEYWORD_ONLY
    signature = inspect.Signature([inspect.Parameter(name, keyword, default=defaults[name]) for name in defaults])

    def decorate(function):
        name = function.__name__

        @functools.wraps(function)
        def build(**arguments):
            for argument in arguments:
                if argument not in defaults:
                    hint = did_you_mean(argument, defaults)
                    raise TypeError(f"{name}() got an unexpected keyword argument {argument!r}.{hint}")
            weights = arguments.pop("weights", None)
            if weights is None:
                return _model(function, defaults, arguments)
            source = presets.resolve(name, weights)
            for argument, value in source.arguments.items():
                if argument not in defaults:
                    raise ValueError(
                        f"`weights` must be a ticket of {name}(). Received: {weights!r}, made with {argument}={value!r}"
                    )
                form = _FORMS.get(argument, lambda given: given)
                if argument in arguments and form(arguments[argument]) != form(value):
                    raise ValueError(
                        f"`{argument}` must be left out or that of the ticket: {value!r} in {weights!r}. "
                        f"Received: {argument}={arguments[argument]!r}"
                    )
            given, arguments = arguments, {**defaults, **source.arguments, **arguments}
            if isinstance(source, presets.File):  # which may be anybody's
                source.check_size(lambda: _model(function, defaults, arguments))
            model = _model(function, defaults, arguments)
            try:
                source.load_into(model, part=not arguments["include_top"])
            except tickets.TicketError as error:
                others = {"classes", "input_shape"} & given.keys()
                if not (others and arguments["include_top"]):
                    raise
                raise tickets.TicketError(
                    f"{error} With other {' or '.join(sorted(others))} than those of the ticket, `include_top` must be "
                    "False."
                ) from error
            return model

        build.__signature__ = signature
        build.__doc__ = inspect.cleandoc(function.__doc__) + f"\n{details}" + _ARGUMENTS.substitute(defaults, name=name)
        return build

    return decorate


def _model(function, defaults, arguments):
    settings = {**defaults, **arguments}
    del settings["weights"]
    _check(**settings)
    for name, kind in (("classes", int), ("pad_values", float), ("width", float)):  # numpy's cannot be saved
        settings[name] = kind(settings[name])
    network = Network(defaults["sparsity"], settings)
    image = keras.Input(settings["input_shape"], name="image")
    model = keras.Model(image, function(network, image), name=function.__name__)
    network.check_sparsity_names()
    return model


def _check(
    *,
    input_shape,
    classes,
    sparsity,
    input_quantizer,
    kernel_quantizer,
    kernel_initializer,
    pad_values,
    width,
    seed,
    **switches,
):
    """Raise ValueError for a bad argument now; the layers would complain about some of them, but later."""
    shape = input_shape if isinstance(input_shape, (tuple, list)) else ()
    if len(shape) != 3 or not all(map(is_count, shape)):
        raise ValueError(f"`input_shape` must be three integers > 0, channels last. Received: {input_shape=}")
    check_count("classes", classes)
    if not getattr(sparsity, "shared", False):
        for fraction in sparsity.values() if isinstance(sparsity, dict) else [sparsity]:
            check_sparsity("sparsity", fraction)
    quantizers.get_activation(input_quantizer)
    quantizers.get_kernel(kernel_quantizer)
    initializers.get(kernel_initializer, "kernel_initializer")
    if not is_number(pad_values):
        raise ValueError(f"`pad_values` must be a finite number. Received: {pad_values=}")
    if not is_number(width) or width <= 0:
        raise ValueError(f"`width` must be a number > 0. Received: {width=}")
    initializers.check_seed(seed)
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise ValueError(f"`{name}` must be True or False. Received: {name}={value!r}")
