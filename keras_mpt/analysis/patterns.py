"""Find layers for engines with semi-structured sparsity."""

import dataclasses

import numpy as np

from keras_mpt.analysis.sources import subnets_by_path
from keras_mpt.arguments import check_integer
from keras_mpt.models.tables import Table, Tabular
from keras_mpt.ops import to_numpy


@dataclasses.dataclass(repr=False)
class Patterns(Tabular):
    """n:m sparsity of kernels, layer by layer. `str()` gives a table, which a notebook shows as HTML.

    Attributes:
        n, m: At most n of m consecutive input channels of an output are kept, if a kernel fits.
        rows: A dict for each kernel: `name`, `shape`, `fits`, and `share`, the fraction of its groups that do; `share`
            is None for kernels that such engines do not take, see `n_of_m`.
    """

    n: int
    m: int
    rows: list

    @property
    def fitting(self):
        """Names of the kernels that fit."""
        return [row["name"] for row in self.rows if row["fits"]]

    def __repr__(self):
        return f"<Patterns {self.n}:{self.m}: {len(self.fitting)} of {len(self.rows)} kernels fit>"

    def _table(self):
        header = ["Kernel", "Shape", "Groups\nthat fit", f"{self.n}:{self.m}"]
        rows = []
        for row in self.rows:
            share = "-" if row["share"] is None else f"{row['share']:.1%}"
            rows.append([row["name"], "x".join(map(str, row["shape"])), share, "yes" if row["fits"] else "no"])
        total = ["Total", "", "", f"{len(self.fitting)} of {len(self.rows)}"]
        return Table(f"{self.n} of {self.m} along the input channels", header, [*rows, total], [])


def n_of_m(model, n=2, m=4):
    """Return which kernels have at most n ones in every m consecutive input channels: those of 2:4 engines.

    A group is m input channels, from a multiple of m on, of one output at one position of the kernel. Kernels whose
    number of input channels m does not divide, and those whose outputs have one input channel each (depthwise
    convolutions, embeddings), do not fit. `masks.NofM` makes such masks.

    Args:
        model: A built model with MPT layers.
        n, m: Integers, `0 < n < m`.

    Returns:
        A `Patterns`.

    Raises:
        ValueError: The model has no MPT layers, one is not built, or `n` or `m` is not as described.
        TypeError: `model` is no model.

    Examples:
        >>> print(keras_mpt.analysis.n_of_m(model))
    """
    check_integer("m", m, 2)
    check_integer("n", n, 1, m - 1)
    rows = []
    for name, subnet in subnets_by_path("model", model).items():
        share = _share(subnet, n, m)
        rows.append({"name": name, "shape": subnet.shape, "fits": share == 1, "share": share})
    return Patterns(int(n), int(m), rows)


def _share(subnet, n, m):
    axis = subnet.input_axis
    if axis is None or subnet.shape[axis] % m:
        return None
    channels = np.moveaxis(to_numpy(subnet.mask), axis, -1)
    return float(np.mean(channels.reshape(-1, m).sum(axis=1) <= n))
