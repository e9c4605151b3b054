"""One threshold for several layers: global pruning."""

import math
import weakref

import keras
from keras import ops
from keras.src.backend.common import global_state  # no public way to know the call or the loading that is under way

from keras_mpt.arguments import check_count
from keras_mpt.masks.rule import SELECTORS, MaskRule, add_integer
from keras_mpt.ops import has_nan, kept_count, magnitude_bits, mask_at, split_kept

_COPIED = weakref.WeakValueDictionary()  # of each config, the rule that the layers of the last copy share


@keras.saving.register_keras_serializable(package="keras_mpt")
class GlobalTopK(MaskRule):
    """Keep the `n - floor(sparsity * n)` largest `|scores|` of the `n` weights of several layers together.

    The threshold is found anew at every step, exactly, before the first of the layers is called. How many weights each
    layer keeps is for the scores to say, and may be none: then its kernel is 0 (see `callbacks.CheckScores`). Ties keep
    the layer whose name comes first, then the lower flat index.

    Layers share the rule if they get the same object; it belongs to one model. Copies of the layers share one copy of
    the rule: after `load_model`, `load_ticket`, `clone_model`, and `from_config` of the whole model. Layers that were
    torn apart raise an error when they are called; `masks.share` brings them together again.

    Source: Diffenderfer et al. 2021, "A Winning Hand: Compressing Deep Networks Can Improve Out-Of-Distribution
    Robustness", arXiv:2106.09129 (global Biprop), which starts at half of the weights: `callbacks.SparsitySchedule`.

    Args:
        sparsity: Fraction of the weights removed, in `[0, 1)`.
        selector: How the threshold is found, see `TopK`.
        group: A name, to tell rules apart where a model has several of these.
        size: How many weights the layers have together; None: those that are built. A copy knows it, and complains if
            there are others.

    Raises:
        ValueError: An argument is not as described.

    Example:

    >>> rule = keras_mpt.masks.GlobalTopK(0.8)
    >>> model = keras.Sequential([MPTConv2D(64, 3, mask=rule), keras.layers.Flatten(), MPTDense(10, mask=rule)])
    """

    variables = (*MaskRule.variables, "empty_steps")
    ranks_magnitudes = True

    def __init__(self, sparsity, selector="search", group="global", size=None):
        super().__init__(sparsity, selector)
        if not isinstance(group, str):
            raise ValueError(f"`group` must be a name. Received: group={group!r}")
        if size is not None:
            check_count("size", size)
        self.group = group
        self._expected = size
        self._sizes = {}  # of the layers, as they were built
        self._in_use = False

    @property
    def layers(self):
        """The built layers that share this rule, in the order in which ties are kept."""
        return sorted(self._sizes, key=lambda layer: layer.name)

    @property
    def size(self):
        """How many weights the layers have together, None before one is built."""
        return self._expected or sum(self._sizes.values()) or None

    def add_weights(self, layer, shape):
        """Create the layer's variables.

        `quota` is the layer's part of the number of ones: only the sum over the layers counts. `threshold` is a hint,
        `nan_steps` and `empty_steps` count the last training steps in a row with NaN scores, without a kept weight.

        Args:
            layer: The MPT layer that is being built.
            shape: Of its kernel.

        Raises:
            ValueError: The rule is in use: the layers that share it have been called without this one.
        """
        if self._in_use and self._expected == sum(self._sizes.values()):  # complete: this is of the next copy
            layer._mask = GlobalTopK.from_config(self.get_config())
            return layer._mask.add_weights(layer, shape)
        if self._in_use:
            raise ValueError(
                "A GlobalTopK belongs to the layers of one model, all built before it is used: give another model "
                f"another object. Received: layer {layer.name!r} after {[other.name for other in self.layers]}"
            )
        self._sizes[layer] = math.prod(shape)
        super().add_weights(layer, shape)
        layer.empty_steps = add_integer(layer, "empty_steps")

    def _first_quota(self, layer, shape):
        return self._quota(layer, self.sparsity)

    def _quota(self, layer, sparsity):
        """Return a share for a layer such that all shares sum up to what the layers keep together."""
        before = 0
        for other, size in self._sizes.items():
            if other is layer:
                return kept_count(before + size, sparsity) - (kept_count(before, sparsity) if before else 0)
            before += size

    def set_sparsity(self, layer, sparsity):
        """Let the layers keep another number of weights from now on, once this was called for each of them.

        Args:
            layer: One of the built layers that share the rule.
            sparsity: Fraction of the weights of all of them removed, in `[0, 1)`.

        Raises:
            ValueError: The sparsity is out of its range.
        """
        layer.quota.assign(self._quota(layer, sparsity))

    def settle(self, layer):
        """Bring up to date what goes into a file; the other layers, whose turn comes next, need not search again."""
        steps = int(ops.convert_to_numpy(layer.empty_steps))
        super().settle(layer)
        layer.empty_steps.assign(steps)  # this was no training step
        threshold = int(ops.convert_to_numpy(layer.threshold))  # not one buffer for all, which JAX would free twice
        for other in self.layers:
            other.threshold.assign(threshold)

    def is_trained(self, layer):
        """Return whether training changes the layer's mask: it does if one of the layers is trained."""
        return layer.trainable or any(other.trainable for other in self.layers)

    def kept(self, layer):
        """Return the number of ones in a built layer's mask, an int32 scalar."""
        return self(layer)[1]

    def __call__(self, layer, training=False):
        """Return the layer's mask, a float32 tensor of zeros and ones (all NaN if a score is NaN), and their number.

        Args:
            layer: A built MPT layer.
            training: Whether to remember the threshold for the next step and count the steps in `nan_steps` and
                `empty_steps`.

        Raises:
            ValueError: Layers that shared the rule are missing.
        """
        keys, place = magnitude_bits(layer.scores), self.layers.index(layer)
        threshold, kept, counts = self._find(layer)
        if training:
            layer.threshold.assign(threshold)
            layer.nan_steps.assign(ops.where(has_nan(keys), layer.nan_steps + 1, 0))
            layer.empty_steps.assign(ops.where(ops.equal(kept[place], 0), layer.empty_steps + 1, 0))
        return mask_at(keys, kept[place], threshold, counts[place]), kept[place]

    def _find(self, layer):
        """Return the threshold and what `split_kept` makes of it."""
        if not global_state.get_global_attribute("symbolic_scope"):
            self._check_complete(layer)
            self._in_use = True

        def find():
            keys = [magnitude_bits(other.scores) for other in self.layers]
            kept = sum(ops.convert_to_tensor(other.quota) for other in self.layers)
            threshold, count = SELECTORS[self.selector](keys, kept, ops.convert_to_tensor(layer.threshold))
            return threshold, *split_kept(keys, kept, threshold, count)

        return self._once(None, [other.scores for other in self.layers], find)

    def _check_complete(self, layer):
        built = sum(self._sizes.values())
        if self._expected not in (None, built):
            raise ValueError(
                f"Layer {layer.name!r} shares a GlobalTopK with layers of {self._expected} weights together. Received: "
                f"{[other.name for other in self.layers]} with {built} weights. If a part of a model was copied, or a "
                "model that was not built, let its layers share a new rule: "
                "keras_mpt.masks.share(keras_mpt.models.mpt_layers(model))"
            )

    def get_config(self):
        return {**super().get_config(), "group": self.group, "size": self.size}

    @classmethod
    def from_config(cls, config):
        """Return one rule for all layers of a model that is being copied.

        While Keras loads a file, it keeps the objects that are shared within it. Elsewhere layers join the last copy
        of the rule as long as it lacks some.
        """
        text = repr(sorted(config.items()))
        loading = global_state.get_global_attribute("shared_objects/id_to_obj_map")
        known = _COPIED if loading is None else loading
        rule = known.get(text)
        if rule is None or rule._expected == sum(rule._sizes.values()):
            rule = known[text] = cls(**config)
        if loading is None and config.get("size") is None:  # not to be told from those of other models
            rule = cls(**config)
            rule._expected = 0
        return rule

    def __repr__(self):
        return f"GlobalTopK({self.sparsity!r}, selector={self.selector!r}, group={self.group!r})"


def share(layers):
    """Let those built layers that have equal `GlobalTopK` rules share a new one, without other layers.

    The number of kept weights is that of the rule's sparsity and the layers' weights again. Compile the model, or call
    `make_train_function(force=True)`, afterwards.

    Args:
        layers: Built MPT layers, such as `keras_mpt.models.mpt_layers(model)`.

    Raises:
        ValueError: A layer is not built; no rule is changed then.

    Example:

    >>> part = keras.Model(model.inputs, model.get_layer("conv4").output)
    >>> keras_mpt.masks.share(keras_mpt.models.mpt_layers(part))
    """
    rules = {}
    missing = [layer.name for layer in layers if not layer.built]
    if missing:
        raise ValueError(f"`layers` must be built. Received: {missing}, which are not")
    for layer in layers:
        if isinstance(layer.mask, GlobalTopK):
            settings = layer.mask.sparsity, layer.mask.selector, layer.mask.group
            rule = rules.setdefault(settings, GlobalTopK(*settings))
            rule._sizes[layer] = math.prod(layer.scores.shape)
            layer._mask = rule
    for rule in rules.values():
        for layer in rule.layers:
            rule.set_sparsity(layer, rule.sparsity)
