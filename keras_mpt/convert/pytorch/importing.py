"""Convert PyTorch checkpoints to Keras models."""

import contextlib
from typing import Any

import keras
import numpy as np

from keras_mpt._types import Path
from keras_mpt.arguments import check_bool, check_instance, check_positive, received
from keras_mpt.convert.pytorch import arrays, layouts, networks, pairing, reading
from keras_mpt.convert.pytorch.order import Order
from keras_mpt.convert.pytorch.reading import CheckpointError
from keras_mpt.convert.pytorch.zeros import check_signs_of_zero
from keras_mpt.layers import MPTLayer
from keras_mpt.layers.traces import forget_compiled
from keras_mpt.masks import MaskRule
from keras_mpt.masks.rule import first_scores
from keras_mpt.models import mpt_layers
from keras_mpt.ops import to_numpy
from keras_mpt.quantizers import Identity, ScaledSign
from keras_mpt.tickets.filling import check_rules, fill_subnet, groups_that_differ, let_train, with_scale


def from_pytorch(
    path_or_state_dict: Path | dict[str, Any],
    model: str | keras.Model | None = None,
    sparsity: float | None = None,
    layout: str = "auto",
    *,
    mask: MaskRule | None = None,
    mapping: dict[str, str] | None = None,
    trainable: bool = False,
    epsilon: float = pairing.EPSILON,
    **arguments: Any,
) -> keras.Model:
    """Load a ticket that the published PyTorch code of Biprop, Edge-Popup or Lottery Jackpots has saved.

    The masks are the checkpoint's, bit for bit. docs/from-pytorch.md documents names and conventions. Reading a file
    never runs code from it. Each key must belong to a layer, and each layer must have its keys in the right shapes;
    otherwise, nothing is imported.

    Args:
        path_or_state_dict: A file of `torch.save`, a dict of tensors or numpy arrays, or a dict with such a dict as its
            `"state_dict"`. Then the entries `prune_rate` (the fraction **kept**), `conv_type` and `arch` are used as
            well. The prefix `module.` of all keys, and `_orig_mod.` anywhere in keys, are ignored.
        model: Name of a network of the zoo, such as `"resnet18_mpt"`, a built functional or Sequential model to load
            into, or None for the network that the checkpoint names.
        sparsity: Fraction of the weights **removed**, if the checkpoint does not have it.
        layout: `"biprop"`, `"hidden_networks"` (Edge-Popup), `"lottery_jackpots"`, or `"auto"`, which raises an error
            if both of the first two are possible.
        mask: A `keras_mpt.masks.GlobalTopK` in place of `sparsity`, for one threshold over all layers, if the
            checkpoint does not say so.
        mapping: For a model that is not of the zoo: dict from the path of each layer with weights (its name, or
            `"block/conv1"` in a nested model) to its name in PyTorch. The operations between these layers cannot be
            checked: compare some outputs.
        trainable: Whether masks can be trained further, also where layers or the model were frozen. Alpha is then
            computed from the kept weights, which are scaled by a constant if that is necessary to get the checkpoint's
            alpha.
        epsilon: Epsilon of the checkpoint's batch normalization, > 0. The model must have the same.
        **arguments: Arguments of the network of the zoo, such as `input_shape`, `width`, or
            `input_quantizer="approx_sign"` for binary activations. The others are taken from the checkpoint. The keys
            of a ResNet do not show binary activations: without `arch`, you must ask for them.

    Returns:
        A `keras.Model` with the checkpoint's outputs. Scores are the checkpoint's if `TopK` gets its mask from them.
        Otherwise, because of equal scores at the cut or of another rule, they are 1 for kept and 0.99 for removed
        weights.

    Raises:
        ValueError: An argument is not as described. A given model does not change.
        CheckpointError: The file cannot be read or is of another network, or its signs of zero would matter. A given
            model does not change. It is a ValueError.
        TypeError: `arguments` are given with a model, or not those of the network; or `mapping` is not a dict.
        OSError: The file cannot be opened.
        ImportError: Reading a file needs PyTorch.

    Examples:
        >>> model = keras_mpt.convert.from_pytorch("model_best.pth", "resnet18_mpt", sparsity=0.8, layout="biprop")
        >>> keras_mpt.save_ticket(model, "resnet18.mpt")
    """
    trainable, epsilon = check_bool("trainable", trainable), check_positive("epsilon", epsilon)
    check_instance("mapping", mapping, (dict, type(None)), "a dict from the layers' paths to PyTorch's names, or None")
    checkpoint = reading.read(path_or_state_dict)
    form = layouts.find_layout(layout, checkpoint)
    rule = layouts.find_rule(form, checkpoint, sparsity, mask)
    if model is None or isinstance(model, str):
        if mapping is not None:
            raise ValueError(f"`mapping` must be left out for a network of the zoo. {received('mapping', mapping)}")
        ours = {"sparsity": _stored_sparsity(checkpoint, form)} if rule is None else rule.arguments
        model = networks.build(model, checkpoint, form, {**ours, **arguments})
    elif arguments:
        raise TypeError(f"from_pytorch() takes {sorted(arguments)} for a network of the zoo only.")
    pairing.check_model(model, [ScaledSign if form.scaled else Identity], epsilon)
    modules = networks.modules_of(model) if mapping is None else dict(mapping)
    layers = pairing.pair(model, modules)
    pairing.check_keys(checkpoint, layers, form)
    order = Order(model)
    values = {path: _Values(checkpoint, layer, module, order) for path, (layer, module) in layers.items()}
    tickets = _tickets(checkpoint, layers, values, form, rule)
    vectors = {path: _vectors(layer, values[path]) for path, (layer, _) in layers.items()}

    with _untouched_on_error(model):
        for path, (layer, _) in layers.items():
            for variable, array in vectors[path]:
                variable.assign(array)
            if path in tickets:
                (subnet,) = layer.subnets
                frozen, mask, scores, scale = tickets[path]
                if trainable:
                    frozen = with_scale(subnet, frozen, mask, scale)
                fill_subnet(subnet, frozen, mask, scores, scale, trainable)
        forget_compiled(model)
        masks = {path: mask for path, (_, mask, *_) in tickets.items()}
        check_rules({path: layers[path][0] for path in masks}, masks)
        check_signs_of_zero(model, checkpoint.name)
    if trainable:
        let_train(model)
    return model


@contextlib.contextmanager
def _untouched_on_error(model):
    """Undo `fill_subnet` and assignments if an error follows."""
    before = [(variable, to_numpy(variable), variable.trainable) for variable in model.weights]
    settings = [(layer, layer.trainable, layer.kernel_quantizer) for layer in mpt_layers(model)]
    try:
        yield
    except BaseException:
        for layer, trainable, quantizer in settings:
            layer.trainable, layer.kernel_quantizer = trainable, quantizer
        forget_compiled(model)
        for variable, array, trainable in before:
            variable.assign(array)
            variable.trainable = trainable
        raise


def _stored_sparsity(checkpoint, layout):
    """Return the fraction removed of all weights with masks."""
    masks = [array for key, array in checkpoint.arrays.items() if key.endswith(f".{layout.stored}")]
    size = sum(mask.size for mask in masks)
    kept = sum(np.count_nonzero(mask) for mask in masks)
    if not kept:
        raise CheckpointError(
            f"{checkpoint.name} has {len(masks)} masks '*.{layout.stored}' that keep no weight at all."
        )
    return (size - kept) / size


class _Values:
    """The arrays of a layer in Keras' order of axes."""

    def __init__(self, checkpoint, layer, module, order):
        self._checkpoint, self._layer, self._module, self._order = checkpoint, layer, module, order

    def raw(self, name):
        return self._checkpoint.arrays[f"{self._module}.{name}"]

    def kernel(self, name, array=None):
        """Return an array in the shape of the kernel: the checkpoint's, or `array`."""
        return self._converted(arrays.kernel_from_torch, name, array, pairing.kernel_variable(self._layer))

    def vector(self, name, variable):
        return self._converted(arrays.vector_from_torch, name, None, variable)

    def _converted(self, convert, name, array, variable):
        array = self.raw(name) if array is None else array
        try:
            converted = convert(self._layer, array, tuple(variable.shape), self._order)
        except ValueError as error:
            raise CheckpointError(f"{self._checkpoint.name}: {self._module + '.' + name!r} {error}.") from error
        return np.ascontiguousarray(converted, bool if array.dtype == bool else np.float32)


def _vectors(layer, values):
    """Return pairs of variable and array for all variables of a layer that do not belong to an MPT kernel."""
    if isinstance(layer, keras.layers.BatchNormalization):
        return [(variable, values.vector(name, variable)) for name, variable in pairing.norm_variables(layer).items()]
    kernel = [] if isinstance(layer, MPTLayer) else [(layer.kernel, values.kernel("weight"))]
    return kernel + ([(layer.bias, values.vector("bias", layer.bias))] if layer.use_bias else [])


def _tickets(checkpoint, layers, values, layout, rule):
    """Return `(frozen kernel, mask, scores, alpha)` by the paths of the MPT layers."""
    mpt = {path: layer for path, (layer, _) in layers.items() if isinstance(layer, MPTLayer)}
    frozen = {path: values[path].kernel("weight") for path in mpt}
    scores = {path: values[path].kernel(layout.scores) for path in mpt}
    if rule is None:
        raw = {path: _stored(checkpoint, values[path], layout) for path in mpt}
    else:
        raw = rule.masks({path: values[path].raw(layout.scores) for path in mpt})
    masks = {path: values[path].kernel(layout.stored or layout.scores, raw[path]) for path in mpt}
    for paths in groups_that_differ({path: layer.subnets[0] for path, layer in mpt.items()}, masks, scores):
        scores |= {path: first_scores(masks[path]) for path in paths}
    alphas = dict.fromkeys(mpt)
    if layout.scaled:
        for path in mpt:
            divisor = rule.divisor(masks[path])
            if not divisor:
                raise CheckpointError(
                    f"{checkpoint.name}: alpha of layer {path!r} is no number there: its {masks[path].size} weights "
                    f"give the divisor 0 at the fraction {rule.kept} kept."
                )
            alphas[path] = layouts.alpha(frozen[path], masks[path], divisor)
    return {path: (frozen[path], masks[path], scores[path], alphas[path]) for path in mpt}


def _stored(checkpoint, values, layout):
    mask = values.raw(layout.stored)
    if not np.isin(mask, (0, 1)).all():
        raise CheckpointError(f"{checkpoint.name}: masks must be 0 and 1. Received: others at '*.{layout.stored}'")
    return mask.astype(bool)
