"""Checks of arguments. Errors name the argument, what was expected and what was received."""

import difflib
import math
import numbers
import os
import pathlib

LARGEST_COUNT = 2**31 - 1  # largest size on every backend


def is_number(value):
    """Return whether a value is a finite real number of Python or numpy, within the range of a float."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the range of floats
        return False


def is_count(value):
    """Return whether a value is an integer in 1 .. 2^31 - 1."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and 0 < value <= LARGEST_COUNT


def check_count(argument, value):
    """Raise ValueError unless a value is an integer > 0, at most 2^31 - 1."""
    if not is_count(value):
        raise ValueError(f"`{argument}` must be an integer > 0. {received(argument, value)}")


def check_integer(argument, value, least=0, most=LARGEST_COUNT):
    """Raise ValueError unless a value is an integer in `least` .. `most`."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"`{argument}` must be an integer in {least} .. {most}. {received(argument, value)}")


def check_number(argument, value, least=-math.inf, most=math.inf):
    """Raise ValueError unless a value is a finite number in [`least`, `most`]."""
    if not is_number(value) or not least <= value <= most:
        bounds = [f" >= {least}"] * (least > -math.inf) + [f" <= {most}"] * (most < math.inf)
        raise ValueError(f"`{argument}` must be a finite number{' and'.join(bounds)}. {received(argument, value)}")


def check_positive(argument, value):
    """Return a finite number > 0 as a float; raise ValueError for any other value."""
    if not is_number(value) or not value > 0:
        raise ValueError(f"`{argument}` must be a finite number > 0. {received(argument, value)}")
    return float(value)


def check_fraction(argument, value, of=""):
    """Raise ValueError unless a value is a number in [0, 1). `of`: its meaning, such as ", the fraction removed"."""
    if not is_number(value) or not 0 <= value < 1:
        raise ValueError(f"`{argument}` must be a number in [0, 1){of}. {received(argument, value)}")


def check_sparsity(argument, value):
    """Raise ValueError unless a sparsity is a number in [0, 1)."""
    check_fraction(argument, value, ", the fraction removed")


def check_bool(argument, value):
    """Return True or False of Python, also for numpy's, which PyTorch refuses and no config can hold.

    Raises:
        ValueError: The value is neither. (A string such as "no" would count as true.)
    """
    if not isinstance(value, bool) and type(value).__name__ not in ("bool_", "bool"):
        raise ValueError(f"`{argument}` must be True or False. {received(argument, value)}")
    return bool(value)


def check_choice(argument, value, choices):
    """Raise ValueError unless a value is one of the strings (or None) `choices`."""
    choices = list(choices)
    if not isinstance(value, (str, type(None))) or value not in choices:
        near = did_you_mean(value, [c for c in choices if c is not None])
        raise ValueError(f"`{argument}` must be one of {choices}.{near} {received(argument, value)}")


def check_path(argument, value):
    """Return the path of a file as a `pathlib.Path`.

    Raises:
        TypeError: The value is neither a string nor an `os.PathLike`.
        ValueError: No file can have this path.
    """
    if not isinstance(value, (str, os.PathLike)) or not isinstance(os.fspath(value), str):
        raise TypeError(f"`{argument}` must be a path, a string or pathlib.Path. {received(argument, value)}")
    if not os.fspath(value) or "\0" in os.fspath(value):
        raise ValueError(f"`{argument}` must be a path of a file. {received(argument, value)}")
    return pathlib.Path(value)


def check_list(argument, value):
    """Raise TypeError unless a value is a list or tuple, and not another iterable such as a string or dict."""
    check_instance(argument, value, (list, tuple), "a list")


def check_instance(argument, value, types, what):
    """Raise TypeError unless a value is of one of these types; `what` describes them in words."""
    if not isinstance(value, types):
        raise TypeError(f"`{argument}` must be {what}. {received(argument, value)}")


def received(argument, value):
    """Return "Received: argument=value" for the end of an error message, of limited length."""
    return f"Received: {argument}={shown(value)}"


def shown(value, most=200):
    """Return a short `repr(value)` without control characters for an error message."""
    if isinstance(value, (str, bytes)):
        value = value[:most]
    elif isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"  # Python refuses to print very long integers
    try:
        return printable(repr(value), most)
    except Exception:  # a foreign `__repr__` may raise anything
        return f"an object of type {type(value).__name__}"


def printable(text, most=math.inf):
    """Return a text on one line, without control characters, shortened in the middle to about `most` characters."""
    if len(text) > most:
        text = f"{text[: 2 * most // 3]} ... {text[-most // 4 :]}"
    return "".join(c if c.isprintable() else " " for c in text)


def did_you_mean(name, names):
    """Return " Did you mean ...?" with the most similar name, "" if none is similar."""
    near = difflib.get_close_matches(str(name)[:100], names, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
