"""The decorator of the functions of the zoo: it loads `weights`, and ignores Keras' global settings."""

import contextlib
import functools
import inspect
import math
import os
from collections.abc import Callable
from typing import ParamSpec

import keras

from keras_mpt import remote, tickets
from keras_mpt.arguments import did_you_mean, received
from keras_mpt.layers import MPTLayer, hold
from keras_mpt.tickets import config, layer_arguments
from keras_mpt.tickets.matching import matched
from keras_mpt.tickets.saving import check_size
from keras_mpt.tickets.ticket import naming
from keras_mpt.zoo import presets
from keras_mpt.zoo.settings import same
from keras_mpt.zoo.wiring import check_wiring

Arguments = ParamSpec("Arguments")
_DRAWN = ("seed", "kernel_initializer")  # what the frozen weights are drawn by: those of a file stay


def builder(function: Callable[Arguments, keras.Model]) -> Callable[Arguments, keras.Model]:
    """Decorator of the functions of the zoo that handles `weights` and `dtype`.

    - `weights` names a ticket. Its arguments replace the defaults, and it is loaded into the network.
    - The network is channels last and has the dtype policy `dtype`, under any global settings of Keras. With a global
      policy other than float32, `dtype` is required.

    Args:
        function: Function of keyword-only arguments that returns a network. It ignores `weights` and `dtype`.
    """
    known = inspect.signature(function).parameters

    @functools.wraps(function)
    def build(**arguments):
        for argument in arguments:
            if argument not in known:
                hint = did_you_mean(argument, known)
                raise TypeError(f"{function.__name__}() got an unexpected keyword argument {argument!r}.{hint}")
        with _keras_settings(arguments.get("dtype")):
            if arguments.get("weights") is None:
                return function(**arguments)
            return _from_ticket(function, known, **arguments)

    return build


@contextlib.contextmanager
def _keras_settings(dtype):
    """Create layers channels last and with a dtype policy, float32 for None."""
    policy, data_format = keras.config.dtype_policy(), keras.config.image_data_format()
    if dtype is None and policy.name != "float32":
        raise ValueError(
            "`dtype` must be given where Keras' global dtype policy is not float32, such as dtype='float32' or "
            f"dtype='mixed_bfloat16'. Received: dtype=None, with the global policy {policy.name!r}"
        )
    wanted = _policy("float32" if dtype is None else dtype)
    try:
        keras.config.set_dtype_policy(wanted)
        keras.config.set_image_data_format("channels_last")
        yield
    finally:
        keras.config.set_dtype_policy(policy)
        keras.config.set_image_data_format(data_format)


def _policy(dtype):
    try:
        policy = keras.dtype_policies.get(dtype)
        if keras.backend.is_float_dtype(policy.compute_dtype):
            return policy
        cause = None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        cause = error
    raise ValueError(
        f"`dtype` must be a dtype policy of floats, such as 'mixed_bfloat16'. {received('dtype', dtype)}"
    ) from cause


def _from_ticket(function, known, weights, **given):
    """Return the network of a ticket. Arguments that the ticket fixes may be given if they agree."""
    ticket, arguments, published = resolve(function.__name__, weights)
    for argument, value in arguments.items():
        if argument not in known:
            raise ValueError(
                f"`weights` must be a ticket of {function.__name__}(). Received: {weights!r}, made with "
                f"{argument}={value!r}"
            )
        if argument in given and not same(argument, given[argument], value):
            raise ValueError(
                f"`{argument}` must be left out or that of the ticket: {value!r} in {weights!r}. "
                f"Received: {argument}={given[argument]!r}"
            )
    make = functools.partial(function, **{**arguments, **given})
    if not published:  # the file may come from a stranger
        check_size(ticket, make)
    model = make()
    part = make.keywords.get("include_top") is False
    try:
        check_wiring(model, ticket, part)
        if not part and {"sparsity", "mask"} & given.keys():
            _check_kept(model, ticket)
        tickets.restore(model, ticket, part=part)
        if not published:  # presets have both among their arguments
            drawn = [name for name in _DRAWN if given.get(name) is not None and name not in arguments]
            with naming(ticket.path):
                layer_arguments.check_drawn(matched(model, ticket), ticket.config, drawn)
    except tickets.TicketError as error:
        others = sorted({"classes", "input_shape"} & given.keys())
        if part or not others or error.layer in (None, *_names(make(include_top=False))):
            raise
        raise tickets.TicketError(
            f"{str(error).rstrip('.')}. With other {' or '.join(others)} than those of the ticket, `include_top` must "
            "be False."
        ) from error
    hold(model)
    return model


def _names(model):
    return [layer.name for layer in model.layers]


def _check_kept(model, ticket):
    """Raise TicketError if the mask rules of a model keep another fraction of all weights than a ticket does."""
    layers = [layer for layer in model.layers if isinstance(layer, MPTLayer)]
    kernels = [entry["kernel"] for entry in ticket.layers.values() if entry["kernel"]]
    total = sum(math.prod(layer.scores.shape) for layer in layers)
    if total != sum(math.prod(kernel["shape"]) for kernel in kernels):
        return  # `restore` says where
    wanted, kept = sum(int(layer.kept) for layer in layers), sum(kernel["kept"] for kernel in kernels)
    if abs(wanted - kept) > total / 1000:
        raise tickets.TicketError(
            f"{ticket.path}: `sparsity` and `mask` must be left out or those of the ticket, which keeps "
            f"{kept / total:.1%} of the weights. Received: {wanted / total:.1%}"
        )


def resolve(architecture, weights):
    """Find the ticket of the argument `weights`.

    Args:
        architecture: Name of the function.
        weights: Name of a preset, dataset of a default preset, or path of a ticket file.

    Returns:
        `(ticket, arguments, published)`: the `Ticket`; the arguments of the function, as far as the ticket has them;
        and whether it is a preset.

    Raises:
        ValueError: There is no such preset, or the ticket is of another architecture.
        TicketError: The file is not a ticket, or its arguments are not plain data.
        OSError: The file cannot be opened.
    """
    if remote.is_remote(weights) or isinstance(weights, os.PathLike):
        return _file(architecture, weights)
    found = [preset for preset in presets.published() if preset.architecture == architecture]
    names = {preset.dataset: preset for preset in found if preset.default}
    names |= {preset.name: preset for preset in found}
    if isinstance(weights, str) and weights in names:
        return tickets.Ticket.read(names[weights].published()), names[weights].arguments, True
    if isinstance(weights, str) and (weights.endswith(presets.ENDING) or os.path.exists(weights)):
        return _file(architecture, weights)
    others = {preset.name: preset.architecture for preset in presets.published()}
    other = f", one of {others[weights]}" if isinstance(weights, str) and weights in others else ""
    raise ValueError(
        f"`weights` must be None, a preset of {architecture} or the path of a {presets.ENDING} file."
        f"{presets.choices(weights, list(names))} {received('weights', weights)}{other}"
    )


def _file(architecture, path):
    ticket = tickets.Ticket.read(path, "weights")
    made_by, arguments = (ticket.provenance.get(key) for key in ("architecture", "arguments"))
    if not isinstance(made_by, str) or not isinstance(arguments, dict):
        return ticket, {}, False
    if made_by != architecture:
        raise ValueError(f"`weights` must be a ticket of {architecture}. Received: {str(path)!r}, one of {made_by}")
    try:
        config.check(arguments)  # quantizers and initializers are created from them
    except ValueError as error:
        raise tickets.TicketError(f"{path}: the arguments in its provenance cannot be used: {error}") from error
    return ticket, arguments, False
