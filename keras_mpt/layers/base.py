"""What every MPT layer has: frozen kernels, trainable scores, a mask rule, quantizers."""

import contextlib
import contextvars
import types

import keras
import numpy as np
from keras import ops

from keras_mpt import _keras, quantizers
from keras_mpt.layers.groups import remember_model
from keras_mpt.layers.held import Holding
from keras_mpt.layers.subnet import Subnet
from keras_mpt.layers.twins import PlainTwin
from keras_mpt.ops import to_numpy

# Of the calls under way in this thread, by the numbers of the subnets: another may be tracing the same layer.
_kernels_of_calls = contextvars.ContextVar("kernels_of_calls", default=types.MappingProxyType({}))


class MPTLayer(Holding, PlainTwin, _keras.NotesCalls):
    """Mixin that turns a Keras layer with kernels into one that trains scores over frozen random kernels.

    With W a frozen kernel, S the scores, M the mask that the rule makes of S, and q the kernel quantizer:

    Forward: `kernel = q(W, M)`, by default `alpha * sign(W) * M` with `alpha = sum(|W| * M) / sum(M)` (Biprop).
    Gradient: `dL/dS = dL/dkernel * W * sign(S)` for every entry, kept or not; alpha and M carry none of their own.
    (For `masks.Restricted`, which ranks S and not |S|, without the sign.)

    Selection and arithmetic happen in float32 whatever the dtype policy; the kernel is cast last.
    Sources: Diffenderfer & Kailkhura 2021, algorithm 1, arXiv:2103.09377; Ramanujan et al. 2020, section 3.2,
    arXiv:1911.13299.

    Args:
        *args: Positional arguments of the Keras layer.
        sparsity: Fraction of the weights removed, in `[0, 1)`; default 0.5.
        kernel_quantizer: What a kept weight is worth: `"scaled_sign"` (default; ±alpha: Biprop), None (its frozen
            value: Edge-Popup), or a kernel quantizer of `keras_mpt.quantizers`.
        input_quantizer: Applied to the inputs: None, a name like `"approx_sign"` (then the layer is MPT-1/1), a
            quantizer of `keras_mpt.quantizers`, or (TensorFlow backend) a larq quantizer.
        mask: A rule of `keras_mpt.masks` instead of `TopK(sparsity)`, such as one `GlobalTopK` for several layers.
        scores_initializer: Default `"kaiming_uniform"` with a = sqrt(5), as published. Not zeros, unless the mask is a
            `masks.Restricted`: their gradient is zero, and they stay so.
        scores_regularizer: Optional Keras regularizer of the scores.
        seed: Integer in [0, 2**64) that determines frozen kernel and initial scores, on every backend the same bits
            with the initializers of keras_mpt; those of Keras differ, and keep a seed of their own. None draws one. The
            config stores it. Layers of equal seeds, shapes and initializers have equal weights: give each layer a seed
            of its own.
        **kwargs: Keyword arguments of the Keras layer, with two other defaults: `use_bias=False` and a seeded
            `kernel_initializer="signed_constant"` (see `keras_mpt.initializers`; any Keras initializer works).

    Attributes of a built layer: `subnets`, a tuple with a `Subnet` for each kernel; `kernel_epoch` (int32 variable: the
    last epoch of training in which a callback changed frozen kernels, -1 before the first). A layer with one kernel has
    its attributes, too: `frozen_kernel` and `scores` (variables), `subnet_mask` (0/1), `kernel` (what the layer
    convolves or multiplies with), `kept` (int32 scalar: how many weights stay).

    Raises:
        ValueError: An argument is out of its range or has no meaning for a frozen kernel.
        AttributeError: `mask` of a built layer, or `sparsity`, is assigned to: see `set_sparsity`. Or an attribute of
            one kernel is asked of a layer with several.
    """

    _kernels = types.MappingProxyType({"kernel": "kernel"})  # what Keras calls each, and how its arguments begin

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        for name in cls._kernels:
            if not any(name in vars(base) for base in cls.__mro__ if issubclass(base, MPTLayer)):
                setattr(cls, name, _kernel_property(name))

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seed = self._seed
        self._model, self._only_model, self._subnets = None, False, ()

    def build(self, input_shape):
        self._check_policy()  # of a `DTypePolicyMap`, which goes by the path that a layer has from here on
        self._subnets = ()
        try:
            super().build(input_shape)
            self._add_more_weights()
        except BaseException:  # what `build` has done is undone, so that another call fails in the same way
            for variable in _keras.own_variables(self):
                _keras.untrack(self, variable)
            self.built, self._subnets = False, ()
            raise

    def _add_more_weights(self):
        for subnet in self._subnets:
            state = subnet.add_state(super().add_weight, self._prefix(subnet.name))
            if len(self._kernels) == 1:
                for name, variable in state.items():
                    setattr(self, name, variable)
        self.kernel_epoch = super().add_weight(
            name="kernel_epoch",
            shape=(),
            dtype="int32",
            initializer=keras.initializers.Constant(-1),
            trainable=False,
            aggregation="only_first_replica",
        )
        for subnet in self._subnets:
            subnet.add_scores(super().add_weight, self._prefix(subnet.name))

    def _prefix(self, kernel):
        return "" if len(self._kernels) == 1 else f"{kernel}_"

    def add_weight(self, *args, name=None, **kwargs):
        """Freeze what Keras' own `build` adds as a kernel."""
        if name not in self._kernels:
            return super().add_weight(*args, name=name, **kwargs)
        shape = kwargs["shape"] if "shape" in kwargs else args[0]
        subnet = Subnet(self, name, self._kernels[name], len(self._subnets))
        self._subnets = (*self._subnets, subnet)
        frozen = "frozen_kernel" if len(self._kernels) == 1 else f"frozen_{name}"
        return subnet.freeze(super().add_weight, frozen, tuple(shape))

    def _fan_in(self, shape, kernel="kernel"):
        """Return how many inputs one output has, for a kernel of this shape and name."""
        return int(np.prod(shape[:-1]))

    def _input_axis(self, kernel="kernel"):
        """Return the axis of the input channels of a kernel, counted from the end; None if an output has one input."""
        return -2

    def set_sparsity(self, sparsity):
        """Let each kernel keep another number of weights from now on; `sparsity` of the mask rule stays.

        Nothing is compiled again. The kernels that share a rule (`masks.GlobalTopK`) have this sparsity together.

        Args:
            sparsity: Fraction of the weights removed, in `[0, 1)`.

        Raises:
            ValueError: The layer is not built, the sparsity is out of its range, or a score is NaN and the rule stores
                its mask.
        """
        for subnet in self.subnets:
            subnet.set_sparsity(sparsity)

    def assign_mask(self, mask, scores=None):
        """Give the kernel of a layer with one a mask to start or go on from.

        Args:
            mask: Array of zeros and ones, or booleans, of the kernel's shape. Of a shared rule it may be all zeros.
            scores: float32 array of that shape; None: 1.0 where the mask is true, else 0.99, as Lottery Jackpots do.
                The rule must make the mask of them, unless it stores masks.

        Raises:
            ValueError: The layer is not built, or shapes or values are not as described; the layer is untouched.
        """
        subnet = self._only("assign_mask")
        if not np.any(mask) and not self.mask.shared:  # a file may hold such a layer; nobody means to make one
            raise ValueError(f"`mask` must keep a weight of layer {self.name!r}. Received: zeros only")
        subnet.assign(mask, scores)

    @property
    def subnets(self):
        """The kernels, a tuple of `Subnet` in the order in which Keras makes them."""
        self._check_built("subnets")
        return self._subnets

    @property
    def frozen_kernel(self):
        """The frozen random kernel, a non-trainable float32 variable."""
        return self._only("frozen_kernel").frozen_kernel

    @property
    def scores(self):
        """The scores, a float32 variable."""
        return self._only("scores", AttributeError).scores

    @property
    def subnet_mask(self):
        """The mask that belongs to the present scores: float32 zeros and ones of the kernel's shape."""
        return self._only("subnet_mask").mask

    @property
    def kept(self):
        """How many weights stay, an int32 scalar: the number of ones in `subnet_mask`."""
        return self._only("kept", AttributeError).kept  # see `_kernel_property`

    def _only(self, attribute, error=ValueError):
        self._check_built(attribute, error)
        if len(self._kernels) > 1:
            raise AttributeError(
                f"`{attribute}` of {type(self).__name__} {self.name!r} is that of one kernel, and there are "
                f"{', '.join(self._kernels)}: see `layer.subnets`"
            )
        return self._subnets[0]

    def _kernel_in_use(self, subnet):
        found = _kernels_of_calls.get().get(subnet.number)
        return ops.cast(subnet.effective(), self.compute_dtype) if found is None else found

    def _note_call(self):
        if self.mask.shared:
            remember_model(self)

    def call(self, inputs, training=None):
        inputs = self._quantized(inputs)
        with self._fixed_kernels(training):
            return super().call(inputs)

    def _quantized(self, inputs):
        if self.input_quantizer is not None and keras.backend.standardize_dtype(inputs.dtype) == "bool":
            inputs = ops.cast(inputs, self.compute_dtype)
        inputs = self._prepare(inputs, self.input_quantizer)
        if self.input_quantizer is not None:
            inputs = ops.cast(inputs, self.compute_dtype)  # larq's quantizers return float32 under any policy
        return inputs

    def _prepare(self, inputs, quantizer):
        return inputs if quantizer is None else quantizer(inputs)

    @contextlib.contextmanager
    def _fixed_kernels(self, training):
        """Compute the kernels once for a call, and only here with side effects on the mask rule's variables."""
        with kernels_of_call(self._found_kernels(training)):
            yield

    def _is_in_call(self):
        return any(subnet.number in _kernels_of_calls.get() for subnet in self._subnets)

    def _found_kernels(self, training):
        return {
            subnet.number: ops.cast(subnet.effective(bool(training) and subnet.is_trained), self.compute_dtype)
            for subnet in self._subnets
        }

    def prepare_plain(self, inputs):
        """Quantize and pad `inputs` as a call does, in plain Keras operations, which take symbolic tensors too."""
        return self._prepare(inputs, quantizers.plain(self.input_quantizer))

    def _plain_values(self):
        """Return what the weights of a plain twin are, by their names."""
        kernels = {id(v) for subnet in self.subnets for v in subnet.variables} | {id(self.kernel_epoch)}
        others = {v.name: to_numpy(v) for v in _keras.own_variables(self) if id(v) not in kernels}
        return {**{subnet.name: to_numpy(subnet.effective()) for subnet in self.subnets}, **others}

    def fill_plain(self, twin):
        """Give a built plain twin the effective kernels, and all other weights.

        Args:
            twin: What `plain` returned, built.
        """
        values = self._plain_values()
        for variable in _keras.own_variables(twin):
            variable.assign(values[variable.name])

    def take_weights(self, plain, kernels=False):
        """Take the weights of the plain layer of the same shape: biases, and on demand the kernels, as frozen ones.

        Args:
            plain: A built Keras layer.
            kernels: Whether to take the kernels, too.
        """
        theirs = {variable.name: to_numpy(variable, "float32") for variable in _keras.own_variables(plain)}
        for subnet in self.subnets:
            kernel = theirs.pop(subnet.name)
            if kernels:
                subnet.frozen_kernel.assign(kernel)
        for variable in _keras.own_variables(self):
            if variable.name in theirs:
                variable.assign(theirs[variable.name])

    def save_own_variables(self, store):
        """Save all variables, the frozen kernel included, after settling the threshold: loading costs no search.

        Raises:
            ValueError: A score is NaN, or an effective kernel is not finite.
        """
        for subnet in self._subnets if self.built else ():
            subnet.settle()
        keras.layers.Layer.save_own_variables(self, store)  # Keras' Dense and Conv would save a kernel and bias only

    def load_own_variables(self, store):
        """Load all variables, as `save_own_variables` has stored them."""
        keras.layers.Layer.load_own_variables(self, store)

    def enable_lora(self, *args, **kwargs):
        """Refuse what Keras' layers of this kind can do: low-rank changes of a kernel, which is frozen here.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(f"{type(self).__name__} has a frozen kernel: low-rank adaptation has no meaning.")

    def quantize(self, *args, **kwargs):
        """Refuse what Keras' layers of this kind can do: another format of the kernel. See `kernel_quantizer`.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(f"{type(self).__name__} is quantized already; see `kernel_quantizer`.")

    def _check_built(self, attribute, error=ValueError):
        if not self.built:
            raise error(
                f"`{attribute}` of {type(self).__name__} {self.name!r} exists once the layer is built: call it on "
                "data or `layer.build(input_shape)` first. Received: built=False"
            )


@contextlib.contextmanager
def kernels_of_call(kernels):
    """Let layers use these kernels, by the numbers of the subnets, within this context and thread."""
    outside = _kernels_of_calls.set({**_kernels_of_calls.get(), **kernels})
    try:
        yield
    finally:
        _kernels_of_calls.reset(outside)


def _kernel_property(name):
    def found(layer):
        layer._check_built(name, AttributeError)
        subnet = next((subnet for subnet in layer._subnets if subnet.name == name), None)
        if subnet is None or subnet.scores is None:  # frameworks probe for it while a layer is being built
            raise AttributeError(f"`{name}` of {type(layer).__name__} {layer.name!r} exists once the layer is built")
        return subnet.kernel

    def ignore(layer, variable):
        """Keras' layers assign what `add_weight` returned, which the subnet has."""

    return property(found, ignore, doc=f"The {name} that the layer computes with, in the layer's compute dtype.")
