"""Initializers that depend on an integer seed only, with the same bits on every backend and platform.

Values are drawn by `keras_mpt.random` in float64 and rounded once to float32. A seed has independent streams: signs and
magnitudes of the kernel, and those of the scores.
"""

import contextlib
import contextvars
import math
import random

import keras
import numpy as np
from keras import ops

from keras_mpt.arguments import check_bool, check_number, did_you_mean, shown
from keras_mpt.random import BLOCK, half_normal, philox, random_signs, random_uniform

__all__ = ["KaimingNormal", "KaimingUniform", "SeededInitializer", "SignedConstant", "UnsignedConstant", "get"]

UNUSED_SEED_BITS = 33  # of 64, the lowest: Keras' initializers take 31
_LAYERS_STREAM = 4  # of a model's seed; streams 0 to 3 are for the kernel and the scores of a layer


def check_seed(seed):
    """Return `seed` as an int; draw one from Python's `random`, as Keras does, for None.

    Raises:
        ValueError: `seed` is not an integer in [0, 2**64) or None.
    """
    if seed is None:
        return random.randint(1, 10**9)
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**64:
        raise ValueError(f"`seed` must be an integer in [0, 2**64) or None. Received: seed={seed!r}")
    return int(seed)


def layer_seeds(seed):
    """Yield the seeds of a model's layers in order of construction: 32-bit words of the last stream of its seed."""
    generator = philox(check_seed(seed), _LAYERS_STREAM)
    while True:
        word = generator.random_raw()
        yield word & 0xFFFFFFFF
        yield word >> 32


_undrawn = contextvars.ContextVar("undrawn", default=False)


@contextlib.contextmanager
def undrawn():
    """Make the initializers of keras_mpt return zeros in this thread, for a model whose weights come from a file."""
    before = _undrawn.set(True)
    try:
        yield
    finally:
        _undrawn.reset(before)


class SeededInitializer(keras.initializers.Initializer):
    """Base class of the initializers that depend on a seed only.

    Subclasses implement `draw`. Layers of `keras_mpt.layers` pass their own seed, so that one integer in the config of
    a layer determines all of its random numbers. A `seed` given here takes precedence.

    Args:
        seed: Integer in [0, 2**64); None: that of the layer, or a random one outside of a layer.

    Raises:
        ValueError: `seed` is not as described.
    """

    def __init__(self, seed=None):
        self.seed = None if seed is None else check_seed(seed)

    def draw(self, shape, seed, stream=0, fan_in=None, kept=1.0):
        """Return the values for a seed, with the same bits on every platform.

        Args:
            shape: Shape of the kernel, `(..., inputs, outputs)`.
            seed: Integer in [0, 2**64).
            stream: Stream of the signs; that of the magnitudes is `stream + 1`.
            fan_in: Number of inputs of an output; default: the product of `shape` without its last axis.
            kept: Fraction of the weights that the layer keeps.

        Returns:
            A float32 array.
        """
        raise NotImplementedError

    def __call__(self, shape, dtype=None, seed=None, **kwargs):
        seed = self.seed if self.seed is not None else check_seed(seed)
        dtype = dtype or keras.config.floatx()
        if _undrawn.get():
            return ops.zeros(shape, dtype)
        return ops.convert_to_tensor(self.draw(tuple(shape), seed, **kwargs), dtype=dtype)

    def get_config(self):
        return {"seed": self.seed}

    def __repr__(self):
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.get_config().items())
        return f"{type(self).__name__}({arguments})"


class _Kaiming(SeededInitializer):
    """Base class of initializers with the standard deviation `sqrt(2 / fan_in)` of He et al. 2015."""

    def __init__(self, scale_fan=False, seed=None):
        super().__init__(seed)
        self.scale_fan = check_bool("scale_fan", scale_fan)

    def _std(self, shape, fan_in, kept):
        fan_in = fan_in or math.prod(shape[:-1])
        return math.sqrt(2.0 / (fan_in * kept if self.scale_fan else fan_in))

    def get_config(self):
        return {"scale_fan": self.scale_fan, **super().get_config()}


@keras.saving.register_keras_serializable(package="keras_mpt")
class SignedConstant(_Kaiming):
    """Random signs times a constant: `±std` with `std = sqrt(2 / fan_in)`.

    Source: Ramanujan et al. 2020 ("signed Kaiming constant"), arXiv:1911.13299.

    Args:
        scale_fan: Whether to multiply `fan_in` by the fraction of kept weights, so that these preserve the variance of
            the signal. (The published code multiplies by the fraction removed: with 20 % kept, its weights are half as
            large.)
        seed: See `SeededInitializer`.

    Raises:
        ValueError: An argument is not as described.

    Examples:
        >>> MPTConv2D(64, 3, kernel_initializer=keras_mpt.initializers.SignedConstant(scale_fan=True), seed=1)
    """

    def draw(self, shape, seed, stream=0, fan_in=None, kept=1.0):
        signs = random_signs(math.prod(shape), seed, stream).reshape(shape)
        return signs * np.float32(self._std(shape, fan_in, kept))


@keras.saving.register_keras_serializable(package="keras_mpt")
class UnsignedConstant(_Kaiming):
    """The constant `std = sqrt(2 / fan_in)`: all weights are equal and positive, for ablations.

    Source: the published code of Ramanujan et al. 2020, arXiv:1911.13299, which uses this name.

    Args:
        scale_fan: See `SignedConstant`.
        seed: Has no effect.

    Raises:
        ValueError: An argument is not as described.
    """

    def draw(self, shape, seed, stream=0, fan_in=None, kept=1.0):
        return np.full(shape, self._std(shape, fan_in, kept), np.float32)


@keras.saving.register_keras_serializable(package="keras_mpt")
class KaimingNormal(_Kaiming):
    """Normal numbers with the standard deviation `sqrt(2 / fan_in)` and the signs of `SignedConstant`.

    Source: He et al. 2015, arXiv:1502.01852.

    Args:
        scale_fan: See `SignedConstant`.
        seed: See `SeededInitializer`.

    Raises:
        ValueError: An argument is not as described.

    Examples:
        >>> MPTDense(10, kernel_initializer=keras_mpt.initializers.KaimingNormal(scale_fan=True), seed=1)
    """

    def draw(self, shape, seed, stream=0, fan_in=None, kept=1.0):
        std = self._std(shape, fan_in, kept)
        return _signed(shape, seed, stream, lambda uniform: std * half_normal(uniform))


@keras.saving.register_keras_serializable(package="keras_mpt")
class KaimingUniform(SeededInitializer):
    """Uniform numbers in `(-b, b)`, `b = sqrt(6 / ((1 + a**2) * fan_in))`.

    The default `a = sqrt(5)` gives `b = 1 / sqrt(fan_in)`, as Edge-Popup and Biprop initialize scores.
    Source: He et al. 2015, arXiv:1502.01852; Ramanujan et al. 2020, arXiv:1911.13299.

    Args:
        a: Negative slope of the leaky ReLU that the bound is meant for, a finite number.
        seed: See `SeededInitializer`.

    Raises:
        ValueError: An argument is not as described.
    """

    def __init__(self, a=math.sqrt(5), seed=None):
        super().__init__(seed)
        check_number("a", a)
        self.a = float(a)

    def draw(self, shape, seed, stream=0, fan_in=None, kept=1.0):
        bound = math.sqrt(6.0 / ((1.0 + self.a * self.a) * (fan_in or math.prod(shape[:-1]))))
        return _signed(shape, seed, stream, lambda uniform: bound * uniform)

    def get_config(self):
        return {"a": self.a, **super().get_config()}


def _signed(shape, seed, stream, magnitude):
    """Return random signs times `magnitude(uniform numbers)`, computed in blocks."""
    values = random_signs(math.prod(shape), seed, stream)
    uniform = random_uniform(values.size, seed, stream + 1)
    for begin in range(0, values.size, BLOCK):
        block = slice(begin, begin + BLOCK)
        values[block] *= magnitude(uniform[block]).astype(np.float32)
    return values.reshape(shape)


_NAMES = {
    "signed_constant": SignedConstant,
    "unsigned_constant": UnsignedConstant,
    "kaiming_normal": KaimingNormal,
    "kaiming_uniform": KaimingUniform,
}


def get(identifier, argument="identifier"):
    """Return an initializer of keras_mpt by name, or what `keras.initializers.get` returns.

    Args:
        identifier: `"signed_constant"`, `"unsigned_constant"`, `"kaiming_normal"`, `"kaiming_uniform"`, a name or
            config that Keras knows, an initializer, or None.
        argument: Name of the argument, for the error message.

    Returns:
        An initializer: a callable of `shape` and `dtype`. None for None.

    Raises:
        ValueError: The identifier is none of these.
    """
    if isinstance(identifier, str) and identifier in _NAMES:
        return _NAMES[identifier]()
    found, cause = None, None
    try:
        found = None if isinstance(identifier, np.generic) else keras.initializers.get(identifier)
    except (ValueError, TypeError) as error:
        cause = error
    if callable(found) or identifier is None:
        return found
    raise ValueError(
        f"`{argument}` must be one of {', '.join(map(repr, _NAMES))}, a name or config that Keras knows, or an "
        f"initializer. Received: {shown(identifier)}.{did_you_mean(identifier, _NAMES)}"
    ) from cause


def reseeded(initializer, seed):
    """Return the same initializer with another seed; itself if it has none.

    Args:
        initializer: A Keras initializer or another callable.
        seed: 64 random bits, of which Keras' initializers use the upper 31.
    """
    if not isinstance(initializer, keras.initializers.Initializer) or "seed" not in initializer.get_config():
        return initializer
    return type(initializer).from_config({**initializer.get_config(), "seed": seed >> UNUSED_SEED_BITS})


def seeded(initializer, seed, stream):
    """Return an initializer with a seed: its own, or else one derived from that of a layer.

    Args:
        initializer: A Keras initializer or another callable.
        seed: Seed of the layer.
        stream: Stream of the seed to use.
    """
    of_keras = isinstance(initializer, keras.initializers.Initializer)
    if not of_keras or initializer.get_config().get("seed", 0) is not None:
        return initializer
    return reseeded(initializer, int(np.random.SeedSequence([seed, stream]).generate_state(1, np.uint64)[0]))
