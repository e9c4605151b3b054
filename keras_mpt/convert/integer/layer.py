"""The integer form of layers from signs to signs: ternary kernels and a threshold for each channel, in numpy.

A layer of signs computes sums of -1, 0 and 1, which are integers. Bias, batch normalization, activation and the next
sign map each sum to one of two values, with at most one change between them. So they are a comparison with an integer:
`sign(f(alpha * (T * s))) = +1 where T * s >= t, else -1`, with inverted signs in the channels of T where f falls.
Without floats, all runtimes give the same signs.
"""

import dataclasses
import itertools

import numpy as np

from keras_mpt.convert.kernels import same_widths

_ROWS = 1 << 22  # values of a table at a time


@dataclasses.dataclass
class IntegerLayer:
    """A convolution or dense layer of signs. Calling it gives signs if it has thresholds, else sums.

    Attributes:
        name: Name of the Keras layer.
        kernel: int8 array of -1, 0 and 1: `(inputs, outputs)` for a dense layer, `(height, width, inputs, outputs)` for
            a convolution, `(height, width, channels, multiplier)` for a depthwise one. For sequences, the width is 1.
        thresholds: int32 array with an entry for each output; None: the results are sums.
        scales: float32 array with the value of one unit of the sums for each output.
        strides, dilation: Two integers each.
        widths: Padding `(before, after)` of height and width.
        pad_value: Value of the padding: -1, 0 or 1.
        depthwise: Whether the convolution is depthwise.
        axes: 2, or 1 for a convolution of sequences.
    """

    name: str
    kernel: np.ndarray
    thresholds: np.ndarray | None = None
    scales: np.ndarray | None = None
    strides: tuple = (1, 1)
    dilation: tuple = (1, 1)
    widths: tuple = ((0, 0), (0, 0))
    pad_value: int = 0
    depthwise: bool = False
    axes: int = 2

    @property
    def outputs(self):
        """Number of outputs."""
        return int(np.prod(self.kernel.shape[2:])) if self.depthwise else self.kernel.shape[-1]

    @property
    def padded(self):
        """Whether the layer pads its inputs."""
        return bool(np.any(self.widths))

    @property
    def rows(self):
        """The kernel as `(weights of an output, outputs)`."""
        if self.depthwise:
            return self.kernel.reshape(-1, self.outputs)
        return self.kernel.reshape(-1, self.kernel.shape[-1])

    def __call__(self, signs):
        sums = self.sums(signs)
        return sums if self.thresholds is None else np.where(sums >= self.thresholds, 1, -1).astype(np.int8)

    def sums(self, signs):
        """Return `T * s` of int8 signs as an int32 array."""
        if self.kernel.ndim == 2:
            return (signs.astype(np.float32) @ self.kernel.astype(np.float32)).astype(np.int32)
        shape = signs.shape
        if self.axes == 1:
            signs = signs[:, :, None]
        signs = np.pad(signs, ((0, 0), *self.widths, (0, 0)), constant_values=self.pad_value)
        sums, positions = 0, self._positions(signs.shape)
        for i, j in itertools.product(*map(range, self.kernel.shape[:2])):
            rows, columns = (
                slice(k * d, k * d + (n - 1) * stride + 1, stride)
                for k, d, n, stride in zip((i, j), self.dilation, positions, self.strides, strict=True)
            )
            part, tap = signs[:, rows, columns].astype(np.float32), self.kernel[i, j].astype(np.float32)
            if self.depthwise:
                sums = sums + (part[..., None] * tap).reshape(*part.shape[:-1], -1)
            else:
                sums = sums + part @ tap
        sums = sums.astype(np.int32)  # integers below 2 ** 24 are exact in float32
        return sums[:, :, 0] if len(shape) == 3 else sums

    def _positions(self, shape):
        return [
            (size - (kernel - 1) * dilation - 1) // stride + 1
            for size, kernel, stride, dilation in zip(
                shape[1:3], self.kernel.shape[:2], self.strides, self.dilation, strict=True
            )
        ]


@dataclasses.dataclass
class MaxPool:
    """Maxima of windows of signs; `same` pads with -1."""

    size: tuple
    strides: tuple
    same: bool = False
    axes: int = 2

    def __call__(self, signs):
        if self.axes == 1:
            return MaxPool(self.size, self.strides, self.same)(signs[:, :, None])[:, :, 0]
        if self.same:
            widths = same_widths(signs.shape, self.size, self.strides, (1, 1))
            signs = np.pad(signs, widths, constant_values=-1)
        windows = np.lib.stride_tricks.sliding_window_view(signs, self.size, axis=(1, 2))
        return windows[:, :: self.strides[0], :: self.strides[1]].max(axis=(-2, -1))


@dataclasses.dataclass
class Flip:
    """Inverts the signs of some channels, before and after maxima, which become minima."""

    turns: np.ndarray  # int8, -1 for inverted channels

    def __call__(self, signs):
        return signs * self.turns


@dataclasses.dataclass
class Reshape:
    """Changes the shape of each sample."""

    shape: tuple

    def __call__(self, signs):
        return signs.reshape(len(signs), *self.shape)


def thresholds(most, scales, functions):
    """Return thresholds for integers, such as the sums of a layer, that give the signs of a function of them.

    The functions are computed for every possible sum by the operations of the model, so that a sum exactly at the
    threshold gets the same sign as in the model.

    Args:
        most: Integer array with the largest magnitude of the sums of each output.
        scales: float32 array with the value of one unit of the sums.
        functions: List of functions of a float32 array `(sums, outputs)`, applied in order to `scales * sum`. The sign
            of the last result is taken.

    Returns:
        `(turns, thresholds, directions)`: the sign is +1 where `turns * sum >= thresholds`, int8 and int32 arrays of
        the outputs; and for each function an int8 array, -1 where the sign falls as its *argument* rises, else 1.

    Raises:
        ValueError: A function is not monotonic in a channel, or returns NaN or infinity.
    """
    largest = int(most.max(initial=0))
    count, total = np.zeros(len(scales), np.int64), 2 * largest + 1  # of sums with +1, of all
    rising = [np.zeros(len(scales), bool) for _ in range(len(functions) + 1)]
    falling = [np.zeros(len(scales), bool) for _ in range(len(functions) + 1)]
    step, last = max(1, _ROWS // max(len(scales), 1)), None
    for begin in range(-largest, largest + 1, step):
        sums = np.arange(begin, min(begin + step, largest + 1))
        values, stages = scales * sums[:, None].astype(np.float32), []
        for function in functions:
            stages.append(values)
            values = function(values)
        if not np.isfinite(values).all():
            raise ValueError("a value before a sign is not finite")
        stages.append(np.where(values >= 0, 1, -1).astype(np.float32))
        count += (stages[-1] > 0).sum(axis=0)
        # compare the first row with the last row of the previous block
        stages = stages if last is None else [np.concatenate(pair) for pair in zip(last, stages, strict=True)]
        for up, down, stage in zip(rising, falling, stages, strict=True):
            changes = np.diff(stage, axis=0)
            up |= (changes > 0).any(axis=0)
            down |= (changes < 0).any(axis=0)
        last = [stage[-1:] for stage in stages]
    if any((up & down).any() for up, down in zip(rising, falling, strict=True)):
        raise ValueError("the values before a sign are not monotonic in the sums")
    falls = falling[-1]
    # rising: +1 from the first positive value on; falling: up to the last one, the negative of this threshold
    found = largest - count + 1
    # always or never +1: a threshold that all or none of the sums of this channel reach
    found = np.where(count == total, -most, np.where(count == 0, most + 1, found))
    found = np.clip(found, -most, most + 1)
    directions = [np.where(falls != down, -1, 1).astype(np.int8) for down in falling[:-1]]
    return np.where(falls, -1, 1).astype(np.int8), found.astype(np.int32), directions
