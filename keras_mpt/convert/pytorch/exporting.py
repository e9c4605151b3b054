"""Convert Keras models to PyTorch state dicts."""

from typing import Any

import keras
import numpy as np

from keras_mpt.arguments import check_instance, check_positive
from keras_mpt.convert.pytorch import arrays, layouts, networks, pairing
from keras_mpt.convert.pytorch.order import Order
from keras_mpt.layers import MPTLayer
from keras_mpt.masks.rule import first_scores
from keras_mpt.models import mpt_layers
from keras_mpt.ops import to_numpy
from keras_mpt.quantizers import Identity, ScaledSign
from keras_mpt.requirements import extra
from keras_mpt.tickets.kernels import scale_of

_ROUNDING = 1e-6  # of alpha, which is a float sum


def to_pytorch_state_dict(
    model: keras.Model,
    layout: str = "auto",
    *,
    mapping: dict[str, str] | None = None,
    epsilon: float = pairing.EPSILON,
) -> dict[str, Any]:
    """Return a state dict for the published PyTorch code, with the same outputs as the model.

    It has frozen weights, scores, and counters of batches, which are 0. With `"biprop"` and `"hidden_networks"`, that
    code computes the masks from the scores and the fraction kept, `1 - sparsity`, which you must pass to it. It is
    checked that this gives the model's masks. `from_pytorch` of the result has the same masks and outputs, and also the
    same scores and weights, with two exceptions: equal scores at the cut become 1 and 0.99, and weights are scaled by a
    constant if the published code divides the sum of alpha by another number than that of the kept weights.

    Args:
        model: A functional or Sequential model, such as one of `load_ticket`.
        layout: `"biprop"`, `"hidden_networks"`, `"lottery_jackpots"` (which stores the masks and so supports all;
            weights of a `"scaled_sign"` kernel become plus or minus alpha), or `"auto"`: the first for `"scaled_sign"`
            kernels, the second for others.
        mapping: For a model that is not of the zoo, as in `from_pytorch`. Dense layers become 1x1 convolutions.
        epsilon: Epsilon of batch normalization in PyTorch, > 0. The model must have the same.

    Returns:
        Dict of `torch.Tensor` for `load_state_dict`, float32 except for the counters, which are int64.

    Raises:
        ValueError: An argument is not as described, or `layout` cannot represent the masks.
        TypeError: `mapping` is not a dict.
        ImportError: PyTorch is not installed.

    Examples:
        >>> state = keras_mpt.convert.to_pytorch_state_dict(model)
        >>> torch.save({"state_dict": state, "prune_rate": 0.2}, "resnet18.pth")
    """
    with extra("torch", "A PyTorch state dict"):
        import torch

    epsilon = check_positive("epsilon", epsilon)
    check_instance("mapping", mapping, (dict, type(None)), "a dict from the layers' paths to PyTorch's names, or None")
    pairing.check_model(model, [ScaledSign, Identity], epsilon)
    form = _layout(model, layout)
    modules = networks.modules_of(model) if mapping is None else dict(mapping)
    layers = pairing.pair(model, modules)
    mpt = {path: layer for path, (layer, _) in layers.items() if isinstance(layer, MPTLayer)}
    order = Order(model)
    masks = {path: to_numpy(layer.subnet_mask) != 0 for path, layer in mpt.items()}
    tickets = (_with_masks if form.stored else _with_scores)(mpt, masks, form, order)
    state = {}
    for path, (layer, module) in layers.items():
        entries = tickets.get(path, {}) | _others(layer, order)
        state |= {f"{module}.{name}": array for name, array in entries.items()}
    return {key: torch.from_numpy(np.array(array, order="C")) for key, array in state.items()}


def _layout(model, name):
    scaled = {layer.kernel_quantizer.scale_count == 1 for layer in mpt_layers(model)}
    if name == "auto" and len(scaled) == 1:
        return layouts.LAYOUTS["biprop" if scaled.pop() else "hidden_networks"]
    layout = layouts.LAYOUTS.get(name)
    if layout is None or not layout.stored and scaled != {layout.scaled}:
        raise ValueError(
            f"`layout` must be one of {['auto', *layouts.LAYOUTS]}, the first two for kernels that are all "
            f"'scaled_sign' or all not ('lottery_jackpots' for any). Received: layout={name!r}"
        )
    return layout


def _others(layer, order):
    """Return the entries of a layer except those of an MPT kernel."""
    if isinstance(layer, keras.layers.BatchNormalization):
        vectors = {
            name: arrays.vector_to_torch(layer, to_numpy(variable, "float32"), order)
            for name, variable in pairing.norm_variables(layer).items()
        }
        return vectors | {"num_batches_tracked": np.int64(0)}
    entries = {} if isinstance(layer, MPTLayer) else {"weight": _in_torch(layer, layer.kernel, order)}
    if layer.use_bias:
        entries["bias"] = arrays.vector_to_torch(layer, to_numpy(layer.bias, "float32"), order)
    return entries


def _with_masks(mpt, masks, layout, order):
    """Return the entries of a layout that stores masks."""
    entries = {}
    for path, layer in mpt.items():
        weights = _in_torch(layer, layer.frozen_kernel, order)
        if layer.kernel_quantizer.scale_count:
            weights = np.float32(_alpha(layer, masks[path])) * np.sign(weights)
        mask = arrays.kernel_to_torch(layer, masks[path].astype(np.float32), order)
        entries[path] = {"weight": weights, layout.scores: _in_torch(layer, layer.scores, order), layout.stored: mask}
    return entries


def _with_scores(mpt, masks, layout, order):
    """Return the entries of a layout whose code computes masks from scores."""
    rule = _rule(mpt)
    wanted = {path: arrays.kernel_to_torch(layer, masks[path], order) for path, layer in mpt.items()}
    scores = {path: _in_torch(layer, layer.scores, order) for path, layer in mpt.items()}
    if _differ(rule.masks(scores), wanted):
        scores = {path: first_scores(mask) for path, mask in wanted.items()}
        differ = _differ(rule.masks(scores), wanted)
        if differ:
            raise ValueError(
                f"`layout` {layout.name!r} has no way to make the masks of layers {differ}, whose code keeps the "
                f"fraction {rule.kept}: use layout='lottery_jackpots', which has the masks themselves."
            )
    entries = {}
    for path, layer in mpt.items():
        weights = _in_torch(layer, layer.frozen_kernel, order)
        if layout.scaled:
            divisor = rule.divisor(masks[path])
            theirs = layouts.alpha(weights, wanted[path], divisor) if divisor else 0.0
            ours = _alpha(layer, masks[path])
            if not theirs and ours:
                raise ValueError(
                    f"`layout` {layout.name!r} has no alpha for layer {path!r}, which keeps too few weights."
                )
            if abs(theirs - ours) > _ROUNDING * ours:
                weights = weights * np.float32(ours / theirs)
        entries[path] = {"weight": weights, layout.scores: scores[path]}
    return entries


def _rule(mpt):
    rules = {layer.mask if layer.mask.shared else path: layer.mask for path, layer in mpt.items()}
    (*_, last) = rules.values()
    if last.shared and len(rules) == 1:
        return layouts.Global(layouts.removed(last.sparsity))
    sparsities = sorted({rule.sparsity for rule in rules.values()})
    if len(sparsities) > 1 or any(rule.shared for rule in rules.values()):
        raise ValueError(
            "`model` must have one sparsity, or one threshold, for all layers, like the published code; or use "
            f"layout='lottery_jackpots', which has the masks themselves. Received: sparsities {sparsities}"
        )
    return layouts.Layerwise(layouts.removed(last.sparsity))


def _differ(masks, wanted):
    return [path for path in wanted if not np.array_equal(masks[path], wanted[path])]


def _alpha(layer, mask):
    return scale_of(layer.kernel_quantizer, to_numpy(layer.frozen_kernel), mask)


def _in_torch(layer, variable, order):
    return arrays.kernel_to_torch(layer, to_numpy(variable, "float32"), order)
