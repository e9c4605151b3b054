"""Initializers whose values are a function of an integer seed alone: bit-identical on every backend and platform.

Values are drawn in numpy from raw Philox bits and computed with IEEE additions, multiplications, divisions and square
roots only, which every platform rounds alike (a library's `log` or `cos` may not), in float64, then rounded once to
float32. One seed has independent streams: the kernel's signs and magnitudes, the scores' signs and magnitudes.
"""

import contextlib
import contextvars
import math
import random

import keras
import numpy as np
from keras import ops

from keras_mpt.arguments import is_number

__all__ = ["KaimingNormal", "KaimingUniform", "SeededInitializer", "SignedConstant", "UnsignedConstant", "get"]

_LAYERS_STREAM = 4  # of a model's seed; streams 0 to 3 serve the kernel and the scores of a layer
_BLOCK = 1 << 20  # entries drawn at a time, to bound the memory used


def random_signs(size, seed, stream=0):
    """Return `size` random signs, -1.0 or +1.0, as float32: entry i is bit i of the Philox stream (1 means +1).

    Args:
        size: Number of signs.
        seed: Integer in [0, 2**64).
        stream: Which of the seed's independent streams to read.
    """
    words = _philox(seed, stream).random_raw(-(-size // 64)).astype("<u8")
    bits = np.unpackbits(words.view(np.uint8), count=size, bitorder="little")
    return bits.astype(np.float32) * 2 - 1


def random_uniform(size, seed, stream=0):
    """Return `size` float64 numbers in the open interval (0, 1), multiples of 2**-33, from the Philox stream.

    Args:
        size: Number of numbers.
        seed: Integer in [0, 2**64).
        stream: Which of the seed's independent streams to read.
    """
    generator = _philox(seed, stream)
    result = np.empty(size, np.float64)
    for begin in range(0, size, _BLOCK):
        part = result[begin : begin + _BLOCK]
        words = generator.random_raw(-(-part.size // 2)).astype("<u8").view("<u4")[: part.size]
        part[:] = (words + 0.5) * 2.0**-32
    return result


def partition(size, counts, seed, stream):
    """Return random disjoint parts of `size` entries, by the order of their uniform numbers (equal ones: by index).

    Args:
        size: Number of entries.
        counts: How many entries each part has; the first has those with the smallest numbers, and so on.
        seed: Integer in [0, 2**64).
        stream: Which of the seed's independent streams to read.

    Returns:
        A list of boolean arrays, one for each count.
    """
    parts, before, begin = [], np.zeros(size, bool), 0
    uniform = random_uniform(size, seed, stream) if any(counts) else None
    for count in counts:
        begin += count
        upto = _smallest(uniform, begin) if count else before
        parts.append(upto & ~before)
        before = upto
    return parts


def _smallest(values, count):
    cut = np.partition(values, count - 1)[count - 1]
    mask = values < cut
    mask[np.flatnonzero(values == cut)[: count - np.count_nonzero(mask)]] = True
    return mask


def half_normal(uniform):
    """Map uniform numbers in (0, 1) to `|z|` of a standard normal z: `sqrt(2) * erfinv(uniform)`.

    Giles' approximation of erfinv ("Approximating the erfinv function", GPU Computing Gems, 2011, single precision),
    over a logarithm made of exactly rounded operations. The relative error is below 4e-7, but for the one draw in 16
    million beyond 5.4 standard deviations, where it grows to 7e-4.

    Args:
        uniform: float64 array of numbers in (0, 1).

    Returns:
        float64 array of the same shape.
    """
    w = -_log((1.0 - uniform) * (1.0 + uniform))
    centre = _polynomial(w - 2.5, _ERFINV_CENTRE)
    tail = _polynomial(np.sqrt(np.maximum(w, 5.0)) - 3.0, _ERFINV_TAIL)
    return math.sqrt(2.0) * np.where(w < 5.0, centre, tail) * uniform


_ERFINV_CENTRE = (
    2.81022636e-08,
    3.43273939e-07,
    -3.5233877e-06,
    -4.39150654e-06,
    0.00021858087,
    -0.00125372503,
    -0.00417768164,
    0.246640727,
    1.50140941,
)
_ERFINV_TAIL = (
    -0.000200214257,
    0.000100950558,
    0.00134934322,
    -0.00367342844,
    0.00573950773,
    -0.0076224613,
    0.00943887047,
    1.00167406,
    2.83297682,
)


def _polynomial(x, coefficients):
    result = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        result = result * x + coefficient
    return result


def _log(x):
    """Natural logarithm of positive numbers to 1e-15, by x = m * 2**e and log m = 2 artanh((m - 1) / (m + 1))."""
    mantissa, exponent = np.frexp(x)
    small = mantissa < math.sqrt(0.5)
    mantissa, exponent = np.where(small, 2 * mantissa, mantissa), exponent - small
    s = (mantissa - 1.0) / (mantissa + 1.0)
    series = _polynomial(s * s, [2.0 / k for k in range(23, 0, -2)])
    return exponent * 0.6931471805599453 + s * series


def _philox(seed, stream):
    return np.random.Philox(key=np.array([seed, stream], np.uint64))


def check_seed(seed):
    """Return `seed` as an int in [0, 2**64), drawn from Python's `random` (as Keras does) if it is None.

    Raises:
        ValueError: It is neither such an integer nor None.
    """
    if seed is None:
        return random.randint(1, 10**9)
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**64:
        raise ValueError(f"`seed` must be an integer in [0, 2**64) or None. Received: seed={seed!r}")
    return int(seed)


def layer_seeds(seed):
    """Yield the seeds of a model's layers, in construction order: the 32-bit words of the model seed's last stream."""
    generator = _philox(check_seed(seed), _LAYERS_STREAM)
    while True:
        word = generator.random_raw()
        yield word & 0xFFFFFFFF
        yield word >> 32


_undrawn = contextvars.ContextVar("undrawn", default=False)


@contextlib.contextmanager
def undrawn():
    """Let the initializers of keras_mpt give zeros in this thread, where a model is made to be filled from a file."""
    before = _undrawn.set(True)
    try:
        yield
    finally:
        _undrawn.reset(before)


class SeededInitializer(keras.initializers.Initializer):
    """Base of the initializers whose values depend on a seed alone.

    Subclasses implement `draw`. A layer of `keras_mpt.layers` passes its own seed, so that one integer in the
    layer's config stands for all of its random numbers; `seed` given here takes precedence.

    Args:
        seed: Integer in [0, 2**64), or None for the layer's (for a random one outside of a layer).
    """

    def __init__(self, seed=None):
        self.seed = None if seed is None else check_seed(seed)

    def draw(self, shape, seed, stream=0, fan_in=None, kept=1.0):
        """Return the values for a seed, on every platform the same bits.

        Args:
            shape: Shape of the kernel, `(..., inputs, outputs)`.
            seed: Integer in [0, 2**64).
            stream: The first of the two streams used, signs; `stream + 1` gives the magnitudes.
            fan_in: Number of inputs of one output; default: all but the last axis of `shape`.
            kept: Fraction of the weights that the layer keeps.

        Returns:
            float32 array of this shape.
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
    """Initializers with the standard deviation sqrt(2 / fan_in) of He et al. 2015."""

    def __init__(self, scale_fan=False, seed=None):
        super().__init__(seed)
        if not isinstance(scale_fan, bool):
            raise ValueError(f"`scale_fan` must be True or False. Received: {scale_fan=}")
        self.scale_fan = scale_fan

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
        scale_fan: Whether to multiply `fan_in` by the fraction of weights kept, so that the *kept* weights preserve
            the variance of the signal. (The published code multiplies by the fraction removed, which is the same at
            half: with 20 % kept, its weights are half as large.)
        seed: See `SeededInitializer`.

    Examples:
        >>> keras_mpt.initializers.SignedConstant(seed=1).draw((2, 2), seed=1)
    """

    def draw(self, shape, seed, stream=0, fan_in=None, kept=1.0):
        signs = random_signs(math.prod(shape), seed, stream).reshape(shape)
        return signs * np.float32(self._std(shape, fan_in, kept))


@keras.saving.register_keras_serializable(package="keras_mpt")
class UnsignedConstant(_Kaiming):
    """The constant `std = sqrt(2 / fan_in)`: all weights equal and positive, for ablations.

    Source: the code published with Ramanujan et al. 2020, arXiv:1911.13299, which has it under this name.

    Args:
        scale_fan: See `SignedConstant`.
        seed: Accepted like everywhere; nothing is random here.
    """

    def draw(self, shape, seed, stream=0, fan_in=None, kept=1.0):
        return np.full(shape, self._std(shape, fan_in, kept), np.float32)


@keras.saving.register_keras_serializable(package="keras_mpt")
class KaimingNormal(_Kaiming):
    """Normal numbers of standard deviation `sqrt(2 / fan_in)`; the signs are those of `SignedConstant`.

    Source: He et al. 2015, arXiv:1502.01852.

    Args:
        scale_fan: See `SignedConstant`.
        seed: See `SeededInitializer`.
    """

    def draw(self, shape, seed, stream=0, fan_in=None, kept=1.0):
        std = self._std(shape, fan_in, kept)
        return _signed(shape, seed, stream, lambda uniform: std * half_normal(uniform))


@keras.saving.register_keras_serializable(package="keras_mpt")
class KaimingUniform(SeededInitializer):
    """Uniform numbers in `(-b, b)`, `b = sqrt(6 / ((1 + a**2) * fan_in))`.

    With the default `a = sqrt(5)`, `b = 1 / sqrt(fan_in)`: how Edge-Popup and Biprop start their scores.
    Source: He et al. 2015, arXiv:1502.01852; Ramanujan et al. 2020, arXiv:1911.13299.

    Args:
        a: Negative slope of the leaky ReLU that the bound is meant for.
        seed: See `SeededInitializer`.
    """

    def __init__(self, a=math.sqrt(5), seed=None):
        super().__init__(seed)
        if not is_number(a):
            raise ValueError(f"`a` must be a finite number. Received: {a=}")
        self.a = float(a)

    def draw(self, shape, seed, stream=0, fan_in=None, kept=1.0):
        bound = math.sqrt(6.0 / ((1.0 + self.a * self.a) * (fan_in or math.prod(shape[:-1]))))
        return _signed(shape, seed, stream, lambda uniform: bound * uniform)

    def get_config(self):
        return {"a": self.a, **super().get_config()}


def _signed(shape, seed, stream, magnitude):
    """Random signs times `magnitude(uniform numbers)`, block by block."""
    values = random_signs(math.prod(shape), seed, stream)
    uniform = random_uniform(values.size, seed, stream + 1)
    for begin in range(0, values.size, _BLOCK):
        block = slice(begin, begin + _BLOCK)
        values[block] *= magnitude(uniform[block]).astype(np.float32)
    return values.reshape(shape)


_NAMES = {
    "signed_constant": SignedConstant,
    "unsigned_constant": UnsignedConstant,
    "kaiming_normal": KaimingNormal,
    "kaiming_uniform": KaimingUniform,
}


def get(identifier, argument="identifier"):
    """Return an initializer: one of ours by name, or whatever `keras.initializers.get` understands.

    Args:
        identifier: `"signed_constant"`, `"unsigned_constant"`, `"kaiming_normal"`, `"kaiming_uniform"`, a name or
            config that Keras knows, or an initializer.
        argument: Name of the argument that it was given as, for the error.

    Returns:
        An initializer: a callable of `shape` and `dtype`.

    Raises:
        ValueError: It is none of these.
    """
    if isinstance(identifier, str) and identifier in _NAMES:
        return _NAMES[identifier]()
    try:
        return keras.initializers.get(identifier)
    except ValueError as error:
        names = ", ".join(map(repr, _NAMES))
        raise ValueError(
            f"`{argument}` must be one of {names}, a name or config that Keras knows, or an initializer. "
            f"Received: {identifier!r}"
        ) from error


def reseeded(initializer, seed):
    """Return a Keras initializer that draws as another one does, but from `seed`; itself if it draws nothing.

    Args:
        initializer: Of Keras or of the user's.
        seed: 64 random bits, of which Keras' initializers take 31.
    """
    if not isinstance(initializer, keras.initializers.Initializer) or "seed" not in initializer.get_config():
        return initializer
    return type(initializer).from_config({**initializer.get_config(), "seed": seed >> 33})


def seeded(initializer, seed, stream):
    """Return a Keras initializer with a seed: its own if it was given one, else one derived from a layer's.

    Args:
        initializer: Of Keras or of the user's.
        seed: The layer's.
        stream: Which of its streams of random bits.
    """
    of_keras = isinstance(initializer, keras.initializers.Initializer)
    if not of_keras or initializer.get_config().get("seed", 0) is not None:
        return initializer
    return reseeded(initializer, int(np.random.SeedSequence([seed, stream]).generate_state(1, np.uint64)[0]))
