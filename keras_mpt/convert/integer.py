"""The integer form of layers from signs to signs: ternary kernels and a threshold for each channel, in numpy.

A layer that takes signs computes sums of -1, 0 and 1, so integers. Bias, batch normalization, activation and the next
sign make of each sum one of two values, and change from one to the other at most once: they are a comparison with an
integer, `sign(f(alpha * (T * s))) = +1 where T * s >= t, else -1`, with the signs of a channel of T turned where f
falls. No float is left, so no runtime can decide otherwise.
"""

import dataclasses
import itertools

import numpy as np

_ROWS = 1 << 22  # values of a table at a time


@dataclasses.dataclass
class IntegerLayer:
    """A convolution or dense layer of signs. Calling it gives signs if it has thresholds, else sums.

    Attributes:
        name: Of the Keras layer.
        kernel: int8 array of -1, 0 and 1: `(inputs, outputs)` of a dense layer, `(height, width, inputs, outputs)` of a
            convolution, `(height, width, channels, multiplier)` if it is depthwise. One of one axis has width 1.
        thresholds: int32 array of an entry for each output; None: its results are sums.
        scales: float32 array of an entry for each output, for which one unit of the sums stands.
        strides, dilation: Two integers each.
        widths: How many entries are added before and after, of height and width.
        pad_value: What they are: -1, 0 or 1.
        depthwise: Whether it is depthwise.
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
        """How many outputs it has."""
        return int(np.prod(self.kernel.shape[2:])) if self.depthwise else self.kernel.shape[-1]

    @property
    def padded(self):
        """Whether it pads its inputs."""
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
    """Maxima of windows of signs; `same` pads with what is no maximum."""

    size: tuple
    strides: tuple
    same: bool = False
    axes: int = 2

    def __call__(self, signs):
        if self.axes == 1:
            return MaxPool(self.size, self.strides, self.same)(signs[:, :, None])[:, :, 0]
        if self.same:
            widths = [(0, 0), *map(_same, signs.shape[1:3], self.size, self.strides), (0, 0)]
            signs = np.pad(signs, widths, constant_values=-1)
        windows = np.lib.stride_tricks.sliding_window_view(signs, self.size, axis=(1, 2))
        return windows[:, :: self.strides[0], :: self.strides[1]].max(axis=(-2, -1))


def _same(size, window, stride):
    total = max((-(-size // stride) - 1) * stride + window - size, 0)
    return total // 2, total - total // 2


@dataclasses.dataclass
class Flip:
    """Signs turned in some channels: what turns maxima into minima, before and after."""

    turns: np.ndarray  # int8, -1 where a channel is turned

    def __call__(self, signs):
        return signs * self.turns


@dataclasses.dataclass
class Reshape:
    """Signs in another shape, that of one sample."""

    shape: tuple

    def __call__(self, signs):
        return signs.reshape(len(signs), *self.shape)


def thresholds(most, scales, functions):
    """Return integers that decide as functions of integers do, such as of a layer's sums.

    What the functions give is computed for each sum that is possible, by the operations that the model computes with,
    so a sum that is exactly on the threshold is decided as the model does it.

    Args:
        most: Integer array: the largest magnitude of the sums of each output.
        scales: float32 array: what one unit of the sums stands for.
        functions: List of functions of a float32 array `(sums, outputs)`, applied one after the other to
            `scales * sum`. The sign is taken of the last one's results.

    Returns:
        `(turns, thresholds, directions)`: the sign is +1 where `turns * sum >= thresholds`, int8 and int32 arrays of
        the outputs; and for each function an int8 array, -1 where the sign falls as its *argument* rises, else 1.

    Raises:
        ValueError: A function neither rises nor falls in a channel, or gives no number.
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
            raise ValueError("what signs are taken of is no number")
        stages.append(np.where(values >= 0, 1, -1).astype(np.float32))
        count += (stages[-1] > 0).sum(axis=0)
        # the first row is compared with the last one of the rows before
        stages = stages if last is None else [np.concatenate(pair) for pair in zip(last, stages, strict=True)]
        for up, down, stage in zip(rising, falling, stages, strict=True):
            changes = np.diff(stage, axis=0)
            up |= (changes > 0).any(axis=0)
            down |= (changes < 0).any(axis=0)
        last = [stage[-1:] for stage in stages]
    if any((up & down).any() for up, down in zip(rising, falling, strict=True)):
        raise ValueError("what signs are taken of does not only rise or only fall with the sums")
    falls = falling[-1]
    # rising: +1 from the first sum that is positive; falling: up to the last one, the negative of this threshold
    found = largest - count + 1
    # always or never: a threshold that the sums of this channel are always or never at
    found = np.where(count == total, -most, np.where(count == 0, most + 1, found))
    found = np.clip(found, -most, most + 1)
    directions = [np.where(falls != down, -1, 1).astype(np.int8) for down in falling[:-1]]
    return np.where(falls, -1, 1).astype(np.int8), found.astype(np.int32), directions
