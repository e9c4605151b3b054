"""What activation and kernel quantizers share: a config that is exactly the constructor's arguments."""

import inspect

from keras_mpt.arguments import is_number


class Quantizer:
    """Base class of all quantizers: a callable with settings that do not change, not a layer, and without variables.

    A subclass keeps each constructor argument in the attribute of the same name; `get_config`, `from_config` and
    `repr` read these. Register a subclass with `keras.saving.register_keras_serializable`, so that models that use it
    can be saved.

    Attributes:
        precision: Bits per quantized value, for model summaries; 32 means not quantized.
    """

    precision = 32

    def get_config(self):
        """Return the constructor's arguments as a JSON-able dict."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    @classmethod
    def from_config(cls, config):
        """Return a quantizer from the result of `get_config()`."""
        return cls(**config)

    def __repr__(self):
        settings = ", ".join(f"{name}={value!r}" for name, value in self.get_config().items())
        return f"{type(self).__name__}({settings})"


def positive_float(argument, value, *, or_zero=False, or_none=False):
    """Return `value` as a float (or None where allowed); raise ValueError naming `argument` otherwise."""
    if value is None and or_none:
        return None
    if not is_number(value) or value < 0 or value == 0 and not or_zero:
        expected = "a number >= 0" if or_zero else "a number > 0"
        raise ValueError(f"`{argument}` must be {'None or ' if or_none else ''}{expected}. Received: {value!r}")
    return float(value)
