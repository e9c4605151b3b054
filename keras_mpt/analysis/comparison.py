"""Overlap of two masks, compared with that of independent masks."""

import dataclasses

import numpy as np

from keras_mpt.analysis.sources import masks_of, paired
from keras_mpt.arguments import check_choice, check_list
from keras_mpt.models.tables import Table, Tabular


@dataclasses.dataclass(frozen=True)
class Overlap:
    """Overlap of two masks A and B of n entries, or of the masks of several layers together.

    Independent random masks with |A| and |B| kept entries have |A| * |B| / n of them in common on average. This is
    `expected` (for several layers, the sum), from which the expected measures follow: for the Hamming distance, which
    is linear in it, the exact mean; for the Jaccard index, the ratio of means, with an error of O(1/n).

    Attributes:
        size: n.
        first: |A|, the number of entries that A keeps.
        second: |B|.
        both: |A and B|.
        expected: |A and B| for independent masks.
    """

    size: int
    first: int
    second: int
    both: int
    expected: float

    @classmethod
    def of(cls, first, second):
        """Compare two masks.

        Args:
            first: bool array, True where a weight is kept.
            second: One of the same shape.

        Returns:
            An `Overlap`.

        Raises:
            ValueError: Their shapes differ, or they have no entries.
        """
        first, second = np.asarray(first) != 0, np.asarray(second) != 0
        if first.shape != second.shape:
            raise ValueError(f"Masks must have one shape. Received: {first.shape} and {second.shape}")
        if not first.size:
            raise ValueError(f"Masks must have entries. Received: masks of shape {first.shape}")
        a, b = int(np.count_nonzero(first)), int(np.count_nonzero(second))
        return cls(first.size, a, b, int(np.count_nonzero(first & second)), a * b / first.size)

    @property
    def jaccard(self):
        """`|A and B| / |A or B|`: 1 for equal masks, 0 for disjoint ones."""
        return self._jaccard(self.both)

    @property
    def expected_jaccard(self):
        """The Jaccard index of independent masks; p / (2 - p) where both have density p."""
        return self._jaccard(self.expected)

    @property
    def hamming(self):
        """`mean(A != B)`: the fraction of entries in which the masks differ."""
        return self._hamming(self.both)

    @property
    def expected_hamming(self):
        """The Hamming distance of independent masks; 2 p (1 - p) where both have density p."""
        return self._hamming(self.expected)

    def _jaccard(self, both):
        either = self.first + self.second - both
        return both / either if either else 1.0

    def _hamming(self, both):
        return (self.first + self.second - 2 * both) / self.size


@dataclasses.dataclass(frozen=True)
class Comparison(Tabular):
    """Comparison of two sets of masks. `str()` gives a table, which a notebook shows.

    Attributes:
        layers: Dict from paths of layers to `Overlap`.
        total: The `Overlap` of all layers together.
    """

    layers: dict
    total: Overlap

    def __repr__(self):
        return f"<Comparison of {len(self.layers)} masks: Jaccard {self.total.jaccard:.4f}>"

    def _table(self):
        def row(name, overlap):
            kept = (f"{count / overlap.size:.1%}" for count in (overlap.first, overlap.second))
            pairs = ((overlap.jaccard, overlap.expected_jaccard), (overlap.hamming, overlap.expected_hamming))
            return [name, *kept, *(f"{value:.4f}" for pair in pairs for value in pair)]

        header = ["layer", "kept\nfirst", "kept\nsecond", "Jaccard", "if inde-\npendent"]
        header += ["Hamming\ndistance", "if inde-\npendent"]
        rows = [row(name, overlap) for name, overlap in self.layers.items()]
        return Table("Overlap of two masks", header, [*rows, row("all layers", self.total)], [])


def overlap(first, second):
    """Compare the masks of two networks with the same architecture, for each layer and in total.

    Args:
        first: Model, ticket, path of a ticket, or dict of masks; see `masks`.
        second: Likewise.

    Returns:
        A `Comparison`.

    Raises:
        ValueError: The shapes of the kernels differ, there is no mask, or a model is not built.
        TypeError, TicketError, OSError: See `masks`.

    Examples:
        >>> print(keras_mpt.analysis.overlap("seed0.mpt", "seed1.mpt"))
    """
    pairs = paired(masks_of("first", first), masks_of("second", second))
    layers = {path: Overlap.of(*pair) for path, pair in pairs.items()}
    fields = [field.name for field in dataclasses.fields(Overlap)]
    total = Overlap(*(sum(getattr(overlap, name) for overlap in layers.values()) for name in fields))
    return Comparison(layers, total)


def overlap_matrix(sources, measure="jaccard"):
    """Compare the total masks of networks with the same architecture, each with each.

    Args:
        sources: List of models, tickets, paths of tickets, or dicts of masks.
        measure: `"jaccard"`, `"hamming"`, or the value for independent masks, `"expected_jaccard"` or
            `"expected_hamming"`.

    Returns:
        float64 array of shape `(len(sources), len(sources))`, symmetric.

    Raises:
        ValueError: `measure` is unknown, the shapes of the kernels differ, or a source has no mask.
        TypeError: A source is of another type, or `sources` is not a list.
        TicketError, OSError: A ticket cannot be read.
    """
    check_list("sources", sources)
    measures = ("jaccard", "hamming", "expected_jaccard", "expected_hamming")
    check_choice("measure", measure, measures)
    sources = [masks_of("sources", source) for source in sources]
    matrix = np.empty((len(sources), len(sources)))
    for i, first in enumerate(sources):
        for j, second in enumerate(sources[: i + 1]):
            matrix[i, j] = matrix[j, i] = getattr(overlap(first, second).total, measure)
    return matrix
