"""Initializers that depend on an integer seed only, with the same bits on every backend and platform.

Values are drawn from raw Philox bits of numpy. They are computed in float64 and rounded once to float32, with
additions, multiplications, divisions and square roots only, which IEEE rounding makes equal everywhere (`log` and `cos`
of a library may differ). A seed has independent streams: signs and magnitudes of the kernel, and those of the scores.
"""

import contextlib
import contextvars
import math
import random

import keras
import numpy as np
from keras import ops

from keras_mpt.arguments import check_bool, check_number, did_you_mean, shown

__all__ = ["KaimingNormal", "KaimingUniform", "SeededInitializer", "SignedConstant", "UnsignedConstant", "get"]

_LAYERS_STREAM = 4  # of a model's seed; streams 0 to 3 are for the kernel and the scores of a layer
_BLOCK = 1 << 20  # entries drawn at a time, to limit memory


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
    """Split `size` entries at random into disjoint parts, in the order of uniform numbers (ties: of indices).

    Args:
        size: Number of entries.
        counts: Sizes of the parts. The first part has the entries with the smallest numbers, and so on.
        seed: Integer in [0, 2**64).
        stream: Which of the seed's independent streams to read.

    Returns:
        List of boolean arrays, one for each count.
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

    This is Giles' approximation of erfinv ("Approximating the erfinv function", GPU Computing Gems, 2011, single
    precision) with a logarithm of exactly rounded operations. The relative error is below 4e-7, and up to 7e-4 beyond
    5.4 standard deviations (one draw in 16 million).

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
    """Return the natural logarithm to 1e-15, by `x = m * 2**e` and `log m = 2 artanh((m - 1) / (m + 1))`."""
    mantissa, exponent = np.frexp(x)
    small = mantissa < math.sqrt(0.5)
    mantissa, exponent = np.where(small, 2 * mantissa, mantissa), exponent - small
    s = (mantissa - 1.0) / (mantissa + 1.0)
    series = _polynomial(s * s, [2.0 / k for k in range(23, 0, -2)])
    return exponent * 0.6931471805599453 + s * series


def _philox(seed, stream):
    return np.random.Philox(key=np.array([seed, stream], np.uint64))


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
    generator = _philox(check_seed(seed), _LAYERS_STREAM)
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
    """Return an initializer of keras_mpt by name, or what `keras.initializers.get` returns.

    Args:
        identifier: `"signed_constant"`, `"unsigned_constant"`, `"kaiming_normal"`, `"kaiming_uniform"`, a name or
            config that Keras knows, or an initializer.
        argument: Name of the argument, for the error message.

    Returns:
        An initializer: a callable of `shape` and `dtype`.

    Raises:
        ValueError: The identifier is unknown.
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
        seed: 64 random bits, of which Keras' initializers use 31.
    """
    if not isinstance(initializer, keras.initializers.Initializer) or "seed" not in initializer.get_config():
        return initializer
    return type(initializer).from_config({**initializer.get_config(), "seed": seed >> 33})


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
