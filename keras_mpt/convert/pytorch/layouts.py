"""The published formats: the keys of a layer, and the computation of mask and alpha.

All arrays here are in PyTorch's order, which decides between equal scores. With `kept` the fraction k of the weights
that is kept (the files' `prune_rate`), S the scores, W the weights and n their number:

- `"biprop"` (Diffenderfer & Kailkhura 2021, arXiv:2103.09377): kernel `alpha * sign(W) * M`, `sign(0) = 0`. M drops the
  first `int((1 - k) * n)` weights of the layer in ascending order of `|S|`; `alpha = sum(|W| * M) / int(k * n)`. Where
  that divisor is not the number of ones in M, alpha is not the mean of the magnitudes.
- `"biprop"` with one threshold for all layers (Diffenderfer et al. 2021, arXiv:2106.09129): with N scores in all layers
  together, M keeps those `|S|` that are larger than the one at place `int((1 - k) * N)` in ascending order, and alpha
  is the mean of the magnitudes.
- `"hidden_networks"` (Edge-Popup, Ramanujan et al. 2020, arXiv:1911.13299): kernel `W * M` with the first M.
- `"lottery_jackpots"` (Zhang et al. 2023, arXiv:2104.08700): kernel `W * M`; W was trained, and M is in the file.
"""

import dataclasses

import numpy as np

from keras_mpt.arguments import check_sparsity, received
from keras_mpt.convert.pytorch.reading import CheckpointError
from keras_mpt.masks import GlobalTopK

_GLOBAL = "GlobalSubnetConv"


@dataclasses.dataclass(frozen=True)
class Layout:
    """A published format.

    Attributes:
        name: Name of the format.
        scores: Name of the scores.
        stored: Name of the mask, None if it follows from the scores.
        scaled: Whether kept weights are plus or minus alpha.
    """

    name: str
    scores: str
    stored: str | None
    scaled: bool


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("biprop", "scores", None, True),
        Layout("hidden_networks", "scores", None, False),
        Layout("lottery_jackpots", "mask", "b_mask", False),
    )
}


@dataclasses.dataclass(frozen=True)
class Layerwise:
    """Each layer keeps the fraction `kept` of its weights."""

    kept: float

    def masks(self, scores):
        """Return the masks (bool) of a dict of scores."""
        return {name: self._mask(array) for name, array in scores.items()}

    def _mask(self, scores):
        mask = np.ones(scores.size, bool)
        order = np.argsort(np.abs(scores).ravel(), kind="stable")
        mask[order[: int((1 - self.kept) * scores.size)]] = False  # floats, as published: 1 - 0.8 is under 0.2
        return mask.reshape(scores.shape)

    def divisor(self, mask):
        """Return the divisor of the sum of the kept magnitudes."""
        return int(self.kept * mask.size)

    @property
    def arguments(self):
        """The rule as arguments of a network of the zoo."""
        return {"sparsity": removed(self.kept)}


@dataclasses.dataclass(frozen=True)
class Global:
    """All layers together keep the fraction `kept` of their weights."""

    kept: float

    def masks(self, scores):
        magnitudes = np.sort(np.concatenate([np.abs(array).ravel() for array in scores.values()]))
        removed = int((1 - self.kept) * magnitudes.size)
        threshold = magnitudes[removed - 1] if removed else -1.0
        return {name: np.abs(array) > threshold for name, array in scores.items()}

    def divisor(self, mask):
        return int(np.count_nonzero(mask))

    @property
    def arguments(self):
        return {"mask": GlobalTopK(removed(self.kept))}


def removed(kept):
    """Return 1 - `kept`, rounded: 0.9 gives 0.1 and vice versa."""
    return round(1 - kept, 12)


def find_layout(name, checkpoint):
    """Return the `Layout` with this name, for `"auto"` the only one that is possible for a checkpoint.

    Raises:
        ValueError: There is no such layout, or several are possible.
    """
    if name in LAYOUTS:
        return LAYOUTS[name]
    if name != "auto":
        raise ValueError(f"`layout` must be one of {['auto', *LAYOUTS]}. Received: layout={name!r}")
    ends = {key.rpartition(".")[2] for key in checkpoint.arrays}
    if "b_mask" in ends:
        return LAYOUTS["lottery_jackpots"]
    if "scores" not in ends:
        raise CheckpointError(
            f"{checkpoint.name} holds neither scores nor masks ({len(checkpoint.arrays)} keys, such as "
            f"{sorted(checkpoint.arrays)[:3]}): it is an ordinary network, not a ticket."
        )
    if checkpoint.conv_type is not None or "BinAct" in (checkpoint.arch or ""):
        return LAYOUTS["biprop"]  # Edge-Popup's code has no binary activations and does not write the type
    raise CheckpointError(
        f"{checkpoint.name} may be Biprop's or Edge-Popup's, whose keys are the same: pass layout='biprop' (kept "
        "weights are plus or minus alpha) or layout='hidden_networks' (they have their own values)."
    )


def find_rule(layout, checkpoint, sparsity, mask=None):
    """Return the rule that computes masks from scores, None if masks are stored.

    Args:
        layout: A `Layout`.
        checkpoint: A `Checkpoint`.
        sparsity: Fraction removed; None: that of the checkpoint.
        mask: A `GlobalTopK` for one threshold over all layers, in place of `sparsity`; None: the checkpoint's rule.

    Raises:
        ValueError: The sparsity is missing or contradictory, or the masks follow another rule.
    """
    if mask is not None:
        if not getattr(mask, "shared", False) or isinstance(mask, type):
            raise ValueError(f"`mask` must be a GlobalTopK or None. {received('mask', mask)}")
        if sparsity is not None:
            raise ValueError(f"`sparsity` must be left out where `mask` is a rule. Received: {sparsity=}, {mask=}")
        sparsity = mask.sparsity
    if layout.stored is not None:
        if sparsity is not None:
            given = "sparsity" if mask is None else "mask"
            raise ValueError(f"`{given}` must be left out: the masks are in the file. Received: {sparsity=}")
        return None
    if checkpoint.conv_type not in (None, "SubnetConv", _GLOBAL):
        raise CheckpointError(
            f"{checkpoint.name} has convolutions of type {checkpoint.conv_type!r}: only the masks of 'SubnetConv' and "
            f"{_GLOBAL!r} follow from the scores."
        )
    if mask is not None and checkpoint.conv_type not in (None, _GLOBAL):
        raise ValueError(f"`mask` must not be a GlobalTopK: {checkpoint.name} says {checkpoint.conv_type!r}.")
    if sparsity is not None:
        check_sparsity("sparsity", sparsity)
    kept = checkpoint.prune_rate if sparsity is None else removed(sparsity)
    if kept is None:
        raise ValueError(
            f"`sparsity` must be given: {checkpoint.name} does not say how many weights are kept. It is the fraction "
            "removed, 1 minus the `prune_rate` of the run."
        )
    if checkpoint.prune_rate is not None and abs(kept - checkpoint.prune_rate) > 1e-9:
        raise ValueError(
            f"`sparsity` must be left out or 1 - {checkpoint.prune_rate!r}, the fraction kept that {checkpoint.name} "
            f"says. Received: {sparsity=}"
        )
    kept = kept if checkpoint.prune_rate is None else checkpoint.prune_rate
    return Global(kept) if mask is not None or checkpoint.conv_type == _GLOBAL else Layerwise(kept)


def alpha(weights, mask, divisor):
    """Return `sum(|W| * M) / divisor`, summed in float64 and rounded to float32."""
    return float(np.float32(np.abs(weights[mask], dtype=np.float64).sum() / divisor))
