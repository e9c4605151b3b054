"""Checks of arguments that several modules have."""

import difflib
import math
import numbers


def is_number(value):
    """Return whether a value is a finite real number, of Python or of numpy."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def is_count(value):
    """Return whether a value is an integer > 0."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and value > 0


def check_count(argument, value):
    """Raise ValueError, with the argument's name, unless a value is an integer > 0."""
    if not is_count(value):
        raise ValueError(f"`{argument}` must be an integer > 0. Received: {argument}={value!r}")


def check_sparsity(argument, value):
    """Raise ValueError, with the argument's name, unless a sparsity is a number in [0, 1)."""
    if not is_number(value) or not 0 <= value < 1:
        raise ValueError(
            f"`{argument}` must be a number in [0, 1), the fraction removed. Received: {argument}={value!r}"
        )


def did_you_mean(name, names):
    """Return " Did you mean ...?" with the one of the names that is most like a wrong one, "" if none is."""
    near = difflib.get_close_matches(str(name), names, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
