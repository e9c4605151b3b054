"""A kernel of an MPT layer: frozen weights, their scores, and the state of the mask rule."""

import functools
import itertools
import math

import keras
import numpy as np
from keras import ops

from keras_mpt import initializers, quantizers
from keras_mpt.layers.arguments import checked_mask, checked_scores
from keras_mpt.layers.groups import group_of, once, set_sparsities, share_quota
from keras_mpt.masks import TopK
from keras_mpt.masks.rule import first_scores, is_of_largest, smallest_kept
from keras_mpt.ops import kept_count, straight_through, to_numpy
from keras_mpt.ops.backend import as_tensor, eager_in_torch, traced_in_graphs

_KERNEL_STREAM, _SCORES_STREAM = 0, 2  # the seed's streams of random bits, two for each tensor
_STREAMS = 8  # from those of a layer's kernel to those of its next one
_numbers = itertools.count()


class Subnet:
    """A masked kernel of an MPT layer. See `MPTLayer` for the formulas.

    Attributes:
        layer: The MPT layer.
        name: Name of the kernel in the Keras layer: `"kernel"`, `"recurrent_kernel"`, ...
        argument: Prefix of its arguments: `"kernel"` as in `kernel_initializer`, `"recurrent"`, ...
        frozen_kernel: The frozen weights W, a non-trainable float32 variable.
        scores: The scores S, a float32 variable.
        state: Variables of the mask rule by name, see `MaskRule.init`.
        held: Variable with the kernel that the layer computes with, while the layer holds it; else None. See `hold`.
        index: Position among the kernels of the layer.
        number: Position among all kernels of this process, in the order in which they were built.
    """

    def __init__(self, layer, name, argument, index):
        self.layer, self.name, self.argument, self.index = layer, name, argument, index
        self.frozen_kernel, self.scores, self.state, self.number = None, None, {}, next(_numbers)
        self._quantizer, self.held, self.changes_when_held = None, None, None

    def __repr__(self):
        return f"<Subnet {self.name!r} of {type(self.layer).__name__} {self.layer.name!r}>"

    @property
    def shape(self):
        """Shape of the kernel, a tuple."""
        return tuple(self.frozen_kernel.shape)

    @property
    def sources(self):
        """The variables that determine the kernel."""
        return [self.frozen_kernel, *self.state.values(), self.scores]

    @property
    def variables(self):
        """All variables of the kernel."""
        return self.sources if self.held is None else [*self.sources, self.held]

    @property
    def kernel_quantizer(self):
        """The layer's kernel quantizer, or one assigned for this kernel, with a fixed alpha for example."""
        return self.layer.kernel_quantizer if self._quantizer is None else self._quantizer

    @kernel_quantizer.setter
    def kernel_quantizer(self, quantizer):
        if len(self.layer.subnets) > 1:
            quantizer = quantizers.get_kernel(quantizer)
            self.layer._release()
            self._quantizer = quantizer
            self.layer._note_change()
        else:
            self.layer.kernel_quantizer = quantizer

    def forget_quantizer(self):
        """Use the layer's kernel quantizer from now on."""
        self._quantizer = None

    @property
    def initializer(self):
        """Initializer of the frozen weights."""
        return getattr(self.layer, f"{self.argument}_initializer")

    @property
    def stream(self):
        """The stream of the layer's seed for the frozen weights; the scores have the second one after it."""
        return _KERNEL_STREAM + _STREAMS * self.index

    @property
    def input_axis(self):
        """The axis of the input channels, counted from the end; None if each output has one input."""
        return self.layer._input_axis(self.name)

    @property
    def coding(self):
        """How tickets code the mask: see `MaskRule.coding`."""
        return self.layer.mask.coding(self.shape, self.layer.seed, self.stream)

    @property
    def searched(self):
        """Array of booleans: the weights that the rule chooses from. None: all."""
        searched = self.layer.mask.searched(_tensors(self.state))
        return None if searched is None else to_numpy(searched)

    def freeze(self, add_weight, name, shape):
        """Create the variable of the frozen weights and return it."""
        if not math.prod(shape):
            raise ValueError(f"Layer {self.layer.name!r} must have weights. Received: a kernel of shape {shape}")
        self.frozen_kernel = add_weight(
            name=name,
            shape=shape,
            initializer=self._seeded(self.initializer, self.stream),
            dtype="float32",
            trainable=False,
            autocast=False,
        )
        return self.frozen_kernel

    def add_state(self, add_weight, prefix):
        """Create the variables of the mask rule and return them by name."""
        try:
            first = self.layer.mask.init(self.shape, self.layer.seed, self.stream, self.input_axis)
        except ValueError as error:
            raise ValueError(f"Layer {self.layer.name!r} cannot have the rule {self.layer.mask!r}. {error}") from error
        for name, value in first.items():
            value = np.asarray(value)
            self.state[name] = add_weight(
                name=prefix + name,
                shape=value.shape,
                dtype=str(value.dtype),
                initializer="zeros" if value.ndim else keras.initializers.Constant(value.item()),
                trainable=False,
                autocast=False,
                aggregation="only_first_replica",
            )
            if value.any() and value.ndim:
                self.state[name].assign(value)
        return self.state

    def add_scores(self, add_weight, prefix):
        """Create the variable of the scores."""
        self.scores = add_weight(
            name=f"{prefix}scores",
            shape=self.shape,
            initializer=self._seeded(self.layer.scores_initializer, self.stream + _SCORES_STREAM),
            regularizer=self.layer.scores_regularizer,
            dtype="float32",
            autocast=False,
        )

    def _seeded(self, initializer, stream):
        if not isinstance(initializer, initializers.SeededInitializer):
            return initializers.seeded(initializer, self.layer.seed, stream)
        return lambda shape, dtype=None: initializer(shape, dtype, **self._settings(initializer, stream, shape))

    def _settings(self, initializer, stream, shape):
        seed = self.layer.seed if initializer.seed is None else initializer.seed
        fan_in = self.layer._fan_in(tuple(shape), self.name)
        return {"seed": seed, "stream": stream, "fan_in": fan_in, "kept": 1 - self.layer.sparsity}

    def draw(self):
        """Return the initializer of the weights, and the arguments of its `draw` (None for an initializer of Keras)."""
        if not isinstance(self.initializer, initializers.SeededInitializer):
            return self.initializer, None
        return self.initializer, self._settings(self.initializer, self.stream, self.shape)

    @property
    def group(self):
        """The subnets with the same threshold as this one, including itself, in the order in which ties are kept."""
        return group_of(self) if self.layer.mask.shared else (self,)

    @property
    def is_trainable(self):
        """Whether its own scores are trained; setting `trainable` of the layer or of a model sets this as well."""
        return self.scores.trainable

    @property
    def is_trained(self):
        """Whether training changes the mask. With a shared rule, one kernel that is trained is enough."""
        return self.is_trainable or any(other.is_trainable for other in self.group)

    @property
    def mask(self):
        """The mask for the current scores: float32 zeros and ones in the shape of the kernel."""
        return self.find()[0]

    @property
    def kept(self):
        """Number of kept weights, an int32 scalar; the variable `quota` unless the rule is shared."""
        return self._values()["kept"] if self.layer.mask.shared else self.state["quota"]

    def find(self, training=False):
        """Return the mask and the number of its ones.

        Args:
            training: Whether to update the state: the threshold for the next step, the count of steps with NaN scores,
                the mask of a rule that stores it.
        """
        if training and self.layer.mask.stores_mask:
            return once(("mask", self.number), [self.scores], lambda: self._find(training))
        return self._find(training)

    def _find(self, training):
        state = self._values()
        mask, kept, changes = self.layer.mask(as_tensor(self.scores), state, training)
        if training:
            self.store(_counted(changes, state))
        return mask, kept

    def _values(self):
        """Return the state as tensors; with a shared rule, also the result of its `together`."""
        state = _tensors(self.state)
        if not self.layer.mask.shared:
            return state
        group = once(("group", self.number), [], lambda: self.group)

        def find():
            return self.layer.mask.together(
                [as_tensor(each.scores) for each in group], [_tensors(each.state) for each in group]
            )

        together = once(tuple(each.number for each in group), [each.scores for each in group], find)
        return {**state, **together[group.index(self)]}

    def store(self, changes):
        """Assign to variables of the state, from a dict by name."""
        for name, value in changes.items():
            self.state[name].assign(value)

    def settle(self):
        """Update the variables before they are saved, which makes loading cheap: it needs no search.

        Raises:
            ValueError: A score is NaN, or the effective kernel is not finite.
        """
        if self.held is not None:
            return
        nan = bool(np.isnan(to_numpy(self.scores)).any())
        self.state["nan_steps"].assign(int(nan))
        if nan:
            raise ValueError(f"The scores of layer {self.layer.name!r} must be numbers to be saved. Received: NaN")
        group = self.group
        if any(int(ops.convert_to_numpy(other.state["quota"])) < 0 for other in group):
            share_quota(group, self.layer.sparsity)
        if not np.isfinite(to_numpy(self.effective())).all():
            raise ValueError(
                f"The kernel of layer {self.layer.name!r} must be finite to be saved. Received: infinity or NaN"
            )
        _, _, changes = self.layer.mask(as_tensor(self.scores), self._values())
        if "threshold" in changes:
            threshold = int(ops.convert_to_numpy(changes["threshold"]))
            for other in group:  # not one buffer for all, which JAX would free twice
                other.state["threshold"].assign(threshold)

    def resized(self, sparsity):
        """Return the changes of the state that let the kernel keep another number of weights.

        Args:
            sparsity: Fraction of the weights removed, in `[0, 1)`.

        Raises:
            ValueError: The sparsity is out of range, or impossible for the rule.
        """
        try:
            kept = kept_count(math.prod(self.shape), sparsity)
            return self.layer.mask.resized(as_tensor(self.scores), self._values(), kept)
        except ValueError as error:
            raise ValueError(f"Layer {self.layer.name!r} cannot have another sparsity. {error}") from error

    def set_sparsity(self, sparsity):
        """Change how many weights the kernel keeps, see `set_sparsities`."""
        set_sparsities([(self, sparsity)])

    def assign(self, mask, scores=None):
        """Assign a mask from which training starts or goes on.

        Args:
            mask: Array of zeros and ones, or of booleans, in the shape of the kernel.
            scores: float32 array of the same shape. Unless the rule stores masks, it must get `mask` from them; with a
                shared rule, whose masks depend on other kernels, this is not checked. None: 1.0 for kept weights and
                0.99 for the others, as in Lottery Jackpots.

        Raises:
            ValueError: An argument is not as described; the kernel stays as it was.
        """
        name, rule = self.layer.name, self.layer.mask
        mask = checked_mask(mask, self.shape, name)
        scores = first_scores(mask) if scores is None else checked_scores(scores, self.shape, name)
        kept = np.count_nonzero(mask)
        try:
            changes = {"quota": np.int32(kept), "threshold": smallest_kept(scores, kept), **rule.assigned(mask)}
        except ValueError as error:
            raise ValueError(
                f"`mask` must be one that the rule {rule!r} of layer {name!r} can make. {error}"
            ) from error
        # What TopK makes is known without the time that a backend takes to compile.
        if not rule.shared and not (type(rule) is TopK and is_of_largest(mask, scores, changes["threshold"])):
            made = self._made(scores, changes)
            if not np.array_equal(made, mask):
                raise ValueError(
                    f"`scores` must make the mask: the rule {rule!r} of layer {name!r} does not make its mask of them. "
                    f"Received: scores whose mask differs in {np.count_nonzero(made != mask)} of {mask.size} weights"
                )
        self.scores.assign(scores)
        self.store(changes)

    def _made(self, scores, changes):
        """Return the mask for other scores and another state, an array of booleans."""
        return to_numpy(self.layer.mask(as_tensor(scores), {**self._values(), **_tensors(changes)})[0]) != 0

    def mask_of(self, scores):
        """Return the mask for other scores, an array of booleans. The rule must not be shared.

        Args:
            scores: float32 array in the shape of the kernel.
        """
        return to_numpy(self.layer.mask(as_tensor(scores), self._values())[0]) != 0

    @eager_in_torch
    def effective(self, training=False):
        """Return the kernel that the layer computes with, in float32."""
        self.layer._traces.note_call()
        if self.held is not None and (kernel := self.layer._held_kernel(self)) is not None:
            return kernel
        scores, frozen = as_tensor(self.scores), as_tensor(self.frozen_kernel)
        quantized = ops.stop_gradient(self._quantized(scores, frozen, training))
        # As arguments, the other two tensors would be ten operations more in TensorFlow's graph.
        return straight_through(lambda scores: quantized, lambda scores: frozen * self.layer.mask.slope(scores), scores)

    def _quantized(self, scores, frozen, training):
        rule, quantizer = self.layer.mask, self.kernel_quantizer
        ours = all(type(each).__module__.startswith("keras_mpt.") for each in (rule, quantizer))
        if rule.shared or rule.stores_mask or not ours:
            return quantizer(frozen, *self.find(training))
        find = _kernels_with(rule, type(quantizer), tuple(quantizer.get_config().items()), self.shape)
        kernel, changes = find(ops.stop_gradient(scores), frozen, self._values())
        if training:
            self.store(changes)
        return kernel

    @property
    def kernel(self):
        """The kernel that the layer computes with, in its compute dtype; during a call, the kernel of that call."""
        return self.layer._kernel_in_use(self)


@functools.lru_cache(256)
def _kernels_with(rule, quantizer_class, settings, shape):
    """Return a function that makes kernels of one shape: to trace it for each layer anew takes seconds."""
    quantizer = quantizer_class(**dict(settings))

    @traced_in_graphs
    def find(scores, frozen, state):
        mask, kept, changes = rule(scores, state)
        return quantizer(frozen, mask, kept), _counted(changes, state)

    return find


def _counted(changes, state):
    """Return the new values of a state: where a rule says whether a step was such a step, the count of such steps."""
    return {
        name: ops.where(value, state[name] + 1, 0) if name.endswith("_steps") else value
        for name, value in changes.items()
    }


def named_subnets(path, layer):
    """Return `(path, subnet)` for the kernels of a built MPT layer; several kernels add their names to the path."""
    several = len(layer.subnets) > 1
    return [(f"{path}/{subnet.name}" if several else path, subnet) for subnet in layer.subnets]


def _tensors(values):
    return {name: as_tensor(value) for name, value in values.items()}
