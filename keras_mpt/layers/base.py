"""The base of all MPT layers: frozen kernels, trainable scores, a mask rule and quantizers."""

import contextlib
import contextvars
import types

import keras
import numpy as np
from keras import ops

from keras_mpt import _keras, quantizers
from keras_mpt.layers.arguments import as_floats, check_frozen_weight, check_kernels, checked_mask, takes_training
from keras_mpt.layers.groups import remember_model, set_sparsities
from keras_mpt.layers.held import Holding
from keras_mpt.layers.subnet import Subnet
from keras_mpt.layers.twins import PlainTwin
from keras_mpt.ops import to_numpy

# Kernels of the calls in progress in this thread, keyed by subnet: another thread may be tracing the same layer.
_kernels_of_calls = contextvars.ContextVar("kernels_of_calls", default=types.MappingProxyType({}))


class MPTLayer(Holding, PlainTwin, _keras.NotesCalls):
    """Mixin that makes a Keras layer train scores instead of its kernels, which are random and frozen.

    W is a frozen kernel, S its scores, M the mask that the rule computes from S, and q the kernel quantizer:

    Forward: `kernel = q(W, M)`, by default `alpha * sign(W) * M` with `alpha = sum(|W| * M) / sum(M)` (Biprop).
    Gradient: `dL/dS = dL/dkernel * W * sign(S)` for every entry, kept or not; alpha and M carry none of their own.
    `masks.Restricted`, which ranks S instead of |S|, leaves out the sign.

    The kernel is computed in float32 under any dtype policy, and cast last.

    `kernel_quantizer` and `input_quantizer` can be assigned to. `fit`, `evaluate` and `predict` then use the new one; a
    `tf.function` or `jax.jit` of your own keeps the one it was traced with.

    References: Diffenderfer & Kailkhura 2021, algorithm 1, arXiv:2103.09377; Ramanujan et al. 2020, section 3.2,
    arXiv:1911.13299.

    Args:
        *args: Positional arguments of the Keras layer.
        sparsity: Fraction of the weights removed, in `[0, 1)`; default 0.5.
        kernel_quantizer: Value of a kept weight: `"scaled_sign"` (±alpha, as in Biprop; the default), None (the frozen
            value, as in Edge-Popup), or a kernel quantizer of `keras_mpt.quantizers`.
        input_quantizer: Quantizer of the inputs: None, a name such as `"approx_sign"` (which makes the layer MPT-1/1),
            a quantizer of `keras_mpt.quantizers` or, on the TensorFlow backend, of larq.
        mask: Mask rule of `keras_mpt.masks`; default: `TopK(sparsity)`. Layers may share a rule, such as `GlobalTopK`.
        scores_initializer: Initializer of the scores; default: `"kaiming_uniform"` with a = sqrt(5), as published.
            Scores of zero have no gradient and never change, except under `masks.Restricted`.
        scores_regularizer: Optional Keras regularizer of the scores.
        seed: Integer in `[0, 2**64)` from which frozen kernel and initial scores are drawn, with the same bits on every
            backend by the initializers of keras_mpt. (Those of Keras differ between backends, and keep their own seed.)
            None draws a seed, which the config stores. Give each layer its own: equal seeds give layers of equal shapes
            the same weights.
        non_trainable: Names of the kernels whose scores are not trained, such as `["depthwise_kernel"]`. That is the
            same as `subnet.scores.trainable = False` once the layer is built, and stays so in copies and Keras' files.
            Their masks do not change, and no callback changes their frozen weights, as with `trainable=False`.
        **kwargs: Keyword arguments of the Keras layer. Two defaults differ: `use_bias=False`, and a seeded
            `"signed_constant"` as the initializer of each kernel: `kernel_initializer`, `depthwise_initializer`,
            `recurrent_initializer`, ... See `keras_mpt.initializers`; any Keras initializer works.

    A built layer has the attributes `subnets`, a tuple with a `Subnet` for each kernel, and `kernel_epoch`, an int32
    variable: the last epoch in which a callback changed a frozen kernel, -1 before the first. A layer with one kernel
    also has that kernel's attributes: `frozen_kernel` and `scores` (variables), `subnet_mask` (zeros and ones),
    `kernel` (what the layer convolves or multiplies with), and `kept` (number of kept weights, an int32 scalar).

    Raises:
        ValueError: An argument is out of range, or has no meaning for a frozen kernel. Or `subnets`, `frozen_kernel` or
            `subnet_mask` is read before the layer is built.
        AttributeError: `sparsity`, `seed` or a kernel, or `mask` of a built layer, is assigned to (see `set_sparsity`,
            `assign_mask`); an attribute of a single kernel is read from a layer with several; or `scores`, `kept` or a
            kernel is read before the layer is built.
    """

    _takes_training = False  # the `call` of the Keras layer
    _kernels = types.MappingProxyType({"kernel": "kernel"})  # what Keras calls each, and how its arguments begin

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        for name in cls._kernels:
            if not any(name in vars(base) for base in cls.__mro__ if issubclass(base, MPTLayer)):
                setattr(cls, name, _kernel_property(name))
        following = getattr(super(), "call", None)  # None: a mixin
        if cls.call is MPTLayer.call and following is not None:
            cls._takes_training = takes_training(cls, following)

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._model, self._only_model, self._subnets = None, False, ()

    def build(self, input_shape):
        self._check_policy()  # of a `DTypePolicyMap`, which goes by the path that a layer has from here on
        if self._subnets:
            raise ValueError(f"Layer {self.name!r} is built already. Received: input_shape={input_shape}")
        try:
            super().build(input_shape)
            check_kernels(self, self._subnets)
            self._add_more_weights()
        except BaseException:  # what `build` has done is undone, so that another call fails in the same way
            for variable in _keras.own_weights(self):
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
            if subnet.name in self._non_trainable:
                subnet.scores.trainable = False

    def _prefix(self, kernel):
        return "" if len(self._kernels) == 1 else f"{kernel}_"

    def add_weight(self, *args, name=None, **kwargs):
        """Freeze what Keras' own `build` adds as a kernel."""
        if name not in self._kernels:
            return super().add_weight(*args, name=name, **kwargs)
        check_frozen_weight(name, kwargs)
        shape = kwargs["shape"] if "shape" in kwargs else args[0]
        subnet = Subnet(self, name, self._kernels[name], len(self._subnets))
        self._subnets = (*self._subnets, subnet)
        frozen = "frozen_kernel" if len(self._kernels) == 1 else f"frozen_{name}"
        return subnet.freeze(super().add_weight, frozen, tuple(shape))

    def _fan_in(self, shape, kernel="kernel"):
        """Return the number of inputs of one output, for a kernel of this shape and name."""
        return int(np.prod(shape[:-1]))

    def _input_axis(self, kernel="kernel"):
        """Return the axis of a kernel's input channels, counted from the end; None if each output has one input."""
        return -2

    def set_sparsity(self, sparsity):
        """Change how many weights each kernel keeps. The mask rule's own `sparsity` stays as it is.

        Nothing is compiled again. Kernels that share a rule (`masks.GlobalTopK`) have this sparsity together.

        Args:
            sparsity: Fraction of the weights removed, in `[0, 1)`.

        Raises:
            ValueError: The layer is not built, the sparsity is out of range or impossible for the rule, or the rule
                stores its mask and a score is NaN. No kernel changes then.
        """
        set_sparsities([(subnet, sparsity) for subnet in self.subnets])

    def assign_mask(self, mask, scores=None):
        """Assign a mask from which training starts or goes on. The layer must have a single kernel.

        Args:
            mask: Array of zeros and ones, or of booleans, in the shape of the kernel. It must keep a weight, unless
                the rule is shared.
            scores: float32 array of the same shape. Unless the rule stores masks, it must get `mask` from them. None:
                1.0 for kept weights and 0.99 for the others, as in Lottery Jackpots.

        Raises:
            ValueError: The layer is not built, or an argument is not as described; the layer stays as it was.
            AttributeError: The layer has several kernels: call `assign` of one of its `subnets`.
        """
        subnet = self._only("assign_mask")
        mask = checked_mask(mask, subnet.shape, self.name)
        if not mask.any() and not self.mask.shared:  # a file may hold such a layer; nobody means to make one
            raise ValueError(f"`mask` must keep a weight of layer {self.name!r}. Received: zeros only")
        subnet.assign(mask, scores)

    @property
    def subnets(self):
        """The kernels, a tuple of `Subnet` in the order in which Keras creates them."""
        self._check_built("subnets")
        return self._subnets

    @property
    def non_trainable(self):
        """Names of the kernels whose scores are not trained though the layer is, a tuple."""
        if not self.built:
            return self._non_trainable
        return tuple(subnet.name for subnet in self._subnets if self.trainable and not subnet.is_trainable)

    @PlainTwin.input_quantizer.setter
    def input_quantizer(self, quantizer):
        PlainTwin.input_quantizer.fset(self, quantizer)
        self._note_change()

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
        """The mask for the current scores: float32 zeros and ones in the shape of the kernel."""
        return self._only("subnet_mask").mask

    @property
    def kept(self):
        """Number of kept weights, the ones in `subnet_mask`: an int32 scalar."""
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
            known = self._takes_training and training is not None
            return super().call(inputs, training=training) if known else super().call(inputs)

    def _quantized(self, inputs):
        inputs = self._prepare(inputs, self.input_quantizer)
        if self.input_quantizer is not None:
            inputs = ops.cast(inputs, self.compute_dtype)  # larq's quantizers return float32 under any policy
        return inputs

    def _prepare(self, inputs, quantizer):
        return inputs if quantizer is None else quantizer(as_floats(inputs, self.compute_dtype))

    @contextlib.contextmanager
    def _fixed_kernels(self, training):
        """Compute the kernels once per call. Only here may the mask rule's variables change."""
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
        """Return `inputs` quantized and padded as in a call, by plain Keras operations; takes symbolic tensors."""
        return self._prepare(inputs, quantizers.plain(self.input_quantizer))

    def _plain_values(self):
        """Return the weights of the plain twin, by their names."""
        kernels = {id(v) for subnet in self.subnets for v in subnet.variables} | {id(self.kernel_epoch)}
        others = {v.name: to_numpy(v) for v in _keras.own_weights(self) if id(v) not in kernels}
        return {**{subnet.name: to_numpy(subnet.effective()) for subnet in self.subnets}, **others}

    def fill_plain(self, twin):
        """Assign the effective kernels and all other weights to a plain twin.

        Args:
            twin: The layer that `plain` returned, built.
        """
        values = self._plain_values()
        for variable in _keras.own_weights(twin):
            variable.assign(values[variable.name])

    def take_weights(self, plain, kernels=False):
        """Take over the weights of a plain layer of the same shape.

        Args:
            plain: A built Keras layer.
            kernels: Whether its kernels become the frozen kernels. Biases are taken in any case.
        """
        theirs = {variable.name: to_numpy(variable, "float32") for variable in _keras.own_weights(plain)}
        for subnet in self.subnets:
            kernel = theirs.pop(subnet.name)
            if kernels:
                subnet.frozen_kernel.assign(kernel)
        for variable in _keras.own_weights(self):
            if variable.name in theirs:
                variable.assign(theirs[variable.name])

    def save_own_variables(self, store):
        """Save all variables, including the frozen kernel. The threshold is settled first: loading needs no search.

        Raises:
            ValueError: A score is NaN, an effective kernel is not finite, or the weights are those of a layer with
                another rule.
        """
        self._check_state()
        for subnet in self._subnets if self.built else ():
            subnet.settle()
        keras.layers.Layer.save_own_variables(self, store)  # Keras' Dense and Conv would save a kernel and bias only

    def load_own_variables(self, store):
        """Load all variables that `save_own_variables` has saved.

        Raises:
            ValueError: They are of a layer with another rule.
        """
        keras.layers.Layer.load_own_variables(self, store)
        self._check_state()

    def _check_state(self):
        """Raise ValueError if weights of a layer with another rule were loaded, or assigned by `set_weights`."""
        for subnet in self._subnets:
            try:
                self.mask.check_state(subnet.state, subnet.shape)
            except ValueError as error:
                raise ValueError(f"Layer {self.name!r} has weights that do not fit its rule. {error}") from error

    def enable_lora(self, *args, **kwargs):
        """Refuse low-rank adaptation, which would change a frozen kernel.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(f"{type(self).__name__} has a frozen kernel: low-rank adaptation has no meaning.")

    def _check_built(self, attribute, error=ValueError):
        if not self.built:
            raise error(
                f"`{attribute}` of {type(self).__name__} {self.name!r} exists once the layer is built: call it on "
                "data or `layer.build(input_shape)` first. Received: built=False"
            )


@contextlib.contextmanager
def kernels_of_call(kernels):
    """Let layers use these kernels, keyed by the numbers of the subnets, within this context and thread."""
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

    def refuse(layer, value):
        """Refuse what is not the result of `add_weight`, which Keras' layers assign and the subnet has already."""
        if not any(value is subnet.frozen_kernel for subnet in layer._subnets):  # cells are `built` before they do so
            raise AttributeError(
                f"`{name}` of layer {layer.name!r} cannot be assigned to: it is computed from `frozen_kernel` and "
                "`scores`, variables that can be assigned to, and `assign_mask` assigns a mask"
            )

    return property(found, refuse, doc=f"The {name} that the layer computes with, in the layer's compute dtype.")
