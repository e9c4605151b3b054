"""What every MPT layer has: a frozen kernel, trainable scores, a mask rule, quantizers."""

import contextlib
import contextvars
import inspect
import math
import types

import keras
from keras import ops

from keras_mpt import initializers, quantizers
from keras_mpt.masks import MaskRule, TopK
from keras_mpt.masks.rule import add_integer
from keras_mpt.ops import straight_through

DEFAULT_SPARSITY = 0.5
# Of the calls under way in this thread, by the ids of the layers: another may be tracing the same layer.
_kernels_of_calls = contextvars.ContextVar("kernels_of_calls", default=types.MappingProxyType({}))
_KERNEL_STREAM, _SCORES_STREAM = 0, 2  # the seed's streams of random bits, two for each tensor


class MPTLayer:
    """Mixin that turns a Keras layer with a kernel into one that trains scores over a frozen random kernel.

    With W the frozen kernel, S the scores, M the mask that the rule makes of S, and q the kernel quantizer:

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

    Attributes of a built layer: `frozen_kernel` and `scores` (variables), `subnet_mask` (0/1), `kernel` (what the
    layer convolves or multiplies with), `kept` (int32 scalar: how many weights stay), `kernel_epoch` (int32 variable:
    the last epoch of training in which a callback changed the frozen kernel, -1 before the first).

    Raises:
        ValueError: An argument is out of its range or has no meaning for a frozen kernel.
        AttributeError: `mask` of a built layer, or `sparsity`, is assigned to. How many weights stay is changed by
            `layer.mask.set_sparsity(layer, sparsity)`.
    """

    _kernel_argument = "kernel"  # how Keras prefixes the kernel's arguments: kernel_initializer, ...

    def __init__(
        self,
        *args,
        sparsity=None,
        kernel_quantizer="scaled_sign",
        input_quantizer=None,
        mask=None,
        scores_initializer="kaiming_uniform",
        scores_regularizer=None,
        seed=None,
        **kwargs,
    ):
        kwargs = self._by_name(args, kwargs)
        kwargs.setdefault("use_bias", False)
        initializer = f"{self._kernel_argument}_initializer"
        kwargs[initializer] = initializers.get(kwargs.get(initializer) or "signed_constant", initializer)
        for argument in self._meaningless_arguments():
            if kwargs.pop(argument, None) is not None:
                raise ValueError(f"`{argument}` has no meaning: the kernel is frozen. See `scores_regularizer`.")
        super().__init__(**kwargs)
        self._check_policy()
        self.mask = _mask_rule(sparsity, mask)
        self.kernel_quantizer = quantizers.get_kernel(kernel_quantizer)
        self.input_quantizer = quantizers.get_activation(input_quantizer)
        if getattr(self, "data_format", None) == "channels_first" and quantizers.is_per_channel(self.input_quantizer):
            raise ValueError(
                "`input_quantizer` with a scale for each channel needs channels last. Received: "
                f"input_quantizer={self.input_quantizer!r}, data_format={self.data_format!r}"
            )
        self.scores_initializer = initializers.get(scores_initializer or "kaiming_uniform", "scores_initializer")
        self.scores_regularizer = keras.regularizers.get(scores_regularizer)
        self.seed = initializers.check_seed(seed)

    def _by_name(self, args, kwargs):
        """Return the arguments of the Keras layer as keyword arguments."""
        named = inspect.signature(self._plain_class().__init__).bind_partial(self, *args).arguments
        del named["self"]
        for name in named:
            if name in kwargs:
                raise TypeError(f"{type(self).__name__}() got multiple values for argument {name!r}")
        return {**named, **kwargs}

    @classmethod
    def _plain_class(cls):
        """Return the Keras layer that this one is made of."""
        return next(b for b in cls.__mro__ if issubclass(b, keras.layers.Layer) and not issubclass(b, MPTLayer))

    @classmethod
    def _meaningless_arguments(cls):
        kernel = cls._kernel_argument
        return (f"{kernel}_regularizer", f"{kernel}_constraint", "lora_rank", "lora_alpha", "quantization_config")

    def _check_policy(self):
        if self.quantization_mode is not None:
            raise ValueError(
                "`dtype` must not quantize: the kernel is quantized already, see `kernel_quantizer`. "
                f"Received: a policy of {self.quantization_mode!r} for layer {self.name!r}"
            )

    def build(self, input_shape):
        self._check_policy()  # of a `DTypePolicyMap`, which goes by the path that a layer has from here on
        super().build(input_shape)
        try:
            self._add_more_weights(tuple(self._kernel.shape))
        except BaseException:  # what Keras' `build` has done is undone, so that another call fails in the same way
            for variable in self.variables:
                self._untrack_variable(variable)
            self.built = False
            raise

    def _add_more_weights(self, shape):
        self.mask.add_weights(self, shape)
        self.kernel_epoch = add_integer(self, "kernel_epoch", -1)
        self.scores = self.add_weight(
            name="scores",
            shape=shape,
            initializer=self._seeded(self.scores_initializer, _SCORES_STREAM),
            regularizer=self.scores_regularizer,
            dtype="float32",
            autocast=False,
        )

    def add_weight(self, *args, name=None, **kwargs):
        """Freeze what Keras' own `build` adds as the kernel."""
        if name != "kernel":
            return super().add_weight(*args, name=name, **kwargs)
        if not math.prod(kwargs["shape"]):
            raise ValueError(f"Layer {self.name!r} must have weights. Received: a kernel of shape {kwargs['shape']}")
        return super().add_weight(
            name="frozen_kernel",
            shape=kwargs["shape"],
            initializer=self._seeded(getattr(self, f"{self._kernel_argument}_initializer"), _KERNEL_STREAM),
            dtype="float32",
            trainable=False,
            autocast=False,
        )

    def _seeded(self, initializer, stream):
        if not isinstance(initializer, initializers.SeededInitializer):
            return initializers.seeded(initializer, self.seed, stream)

        def initialize(shape, dtype=None):
            return initializer(shape, dtype, **self._draw_settings(initializer, stream, shape))

        return initialize

    def _draw_settings(self, initializer, stream, shape):
        seed = self.seed if initializer.seed is None else initializer.seed
        return {"seed": seed, "stream": stream, "fan_in": self._fan_in(shape), "kept": 1 - self.sparsity}

    def kernel_draw(self):
        """Return the kernel's initializer, and the settings its `draw` got (None if it is not one of ours)."""
        initializer = getattr(self, f"{self._kernel_argument}_initializer")
        if not isinstance(initializer, initializers.SeededInitializer):
            return initializer, None
        return initializer, self._draw_settings(initializer, _KERNEL_STREAM, tuple(self.frozen_kernel.shape))

    def _fan_in(self, shape):
        """Return how many inputs one output has, for a kernel of this shape."""
        return math.prod(shape[:-1])

    @property
    def mask(self):
        """The mask rule."""
        return self._mask

    @mask.setter
    def mask(self, rule):
        if self.built:
            raise AttributeError(
                f"`mask` of layer {self.name!r} cannot be assigned to once the layer is built. How many weights stay "
                f"is changed by `layer.mask.set_sparsity(layer, sparsity)`. Received: {rule!r}"
            )
        if not isinstance(rule, MaskRule):
            raise ValueError(f"`mask` must be a rule of keras_mpt.masks, such as TopK(0.5). Received: mask={rule!r}")
        self._mask = rule

    @property
    def sparsity(self):
        """The fraction of the weights that the mask rule was made to remove."""
        return self.mask.sparsity

    @sparsity.setter
    def sparsity(self, value):
        raise AttributeError(
            f"`sparsity` of layer {self.name!r} cannot be assigned to. How many weights stay is changed by "
            f"`layer.mask.set_sparsity(layer, sparsity)`, or `callbacks.SparsitySchedule`. Received: {value!r}"
        )

    @property
    def frozen_kernel(self):
        """The frozen random kernel, a non-trainable float32 variable."""
        self._check_built("frozen_kernel")
        return self._kernel

    @property
    def subnet_mask(self):
        """The mask that belongs to the present scores: float32 zeros and ones of the kernel's shape."""
        self._check_built("subnet_mask")
        return self.mask(self)[0]

    @property
    def kept(self):
        """How many weights stay, an int32 scalar: the number of ones in `subnet_mask`."""
        self._check_built("kept", AttributeError)  # see `kernel`
        return self.mask.kept(self)

    @property
    def kernel(self):
        """The kernel that the layer convolves or multiplies with, in the layer's compute dtype."""
        self._check_built("kernel", AttributeError)  # frameworks probe for it while a layer is being built
        found = _kernels_of_calls.get().get(id(self))
        return self._effective_kernel() if found is None else found

    @kernel.setter
    def kernel(self, variable):
        self._kernel = variable  # some Keras layers assign what `add_weight` returned

    def _effective_kernel(self, training=False):
        mask, kept = self.mask(self, training)
        scores, frozen = ops.convert_to_tensor(self.scores), ops.convert_to_tensor(self._kernel)
        quantized = ops.stop_gradient(self.kernel_quantizer(frozen, mask, kept))
        kernel = straight_through(
            lambda scores, frozen, quantized: quantized,
            lambda scores, frozen, quantized: frozen * self.mask.slope(scores),
            scores,
            frozen,
            quantized,
        )
        return ops.cast(kernel, self.compute_dtype)

    def call(self, inputs, training=None):
        if self.input_quantizer is not None and keras.backend.standardize_dtype(inputs.dtype) == "bool":
            inputs = ops.cast(inputs, self.compute_dtype)
        inputs = self._prepare(inputs, self.input_quantizer)
        if self.input_quantizer is not None:
            inputs = ops.cast(inputs, self.compute_dtype)  # larq's quantizers return float32 under any policy
        with self._one_kernel(bool(training) and self.mask.is_trained(self)):
            return super().call(inputs)

    def _prepare(self, inputs, quantizer):
        return inputs if quantizer is None else quantizer(inputs)

    @contextlib.contextmanager
    def _one_kernel(self, training):
        """Compute the kernel once for a call, and only here with its side effects on the mask rule's variables."""
        kernels = {**_kernels_of_calls.get(), id(self): self._effective_kernel(training)}
        outside = _kernels_of_calls.set(kernels)
        try:
            yield
        finally:
            _kernels_of_calls.reset(outside)

    def plain(self, kernel_initializer="zeros"):
        """Return the Keras layer of the same shape, unbuilt, for inputs that `prepare_plain` made.

        Raises:
            ValueError: The class has a `call` of its own, which that layer would lack.
        """
        ours = next(base for base in type(self).__mro__ if base.__module__.split(".")[0] == "keras_mpt")
        if type(self).call is not ours.call:
            raise ValueError(
                f"Layer {self.name!r} must compute what {ours.__name__} does to become a plain Keras layer. Received: "
                f"a {type(self).__name__} with a `call` of its own"
            )
        return self._plain_class().from_config(
            {**self._keras_config(), f"{self._kernel_argument}_initializer": kernel_initializer}
        )

    def prepare_plain(self, inputs):
        """Quantize and pad `inputs` as a call does, in plain Keras operations, which take symbolic tensors too."""
        return self._prepare(inputs, quantizers.plain(self.input_quantizer))

    def save_own_variables(self, store):
        """Save all variables, the frozen kernel included, after settling the threshold: loading costs no search.

        Raises:
            ValueError: A score is NaN.
        """
        if self.built:
            self.mask.settle(self)
            if int(ops.convert_to_numpy(self.nan_steps)) > 0:
                raise ValueError(f"The scores of layer {self.name!r} must be numbers to be saved. Received: NaN")
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

    def _keras_config(self):
        config = super().get_config()
        return {name: value for name, value in config.items() if name not in self._meaningless_arguments()}

    def get_config(self):
        return {
            **self._keras_config(),
            "sparsity": self.sparsity,
            "mask": keras.saving.serialize_keras_object(self.mask),
            "kernel_quantizer": quantizers.serialize(self.kernel_quantizer),
            "input_quantizer": quantizers.serialize(self.input_quantizer),
            "scores_initializer": keras.initializers.serialize(self.scores_initializer),
            "scores_regularizer": keras.regularizers.serialize(self.scores_regularizer),
            "seed": self.seed,
        }

    def _check_built(self, attribute, error=ValueError):
        if not self.built:
            raise error(
                f"`{attribute}` of {type(self).__name__} {self.name!r} exists once the layer is built: call it on "
                "data or `layer.build(input_shape)` first. Received: built=False"
            )


def _mask_rule(sparsity, mask):
    if mask is None:
        return TopK(DEFAULT_SPARSITY if sparsity is None else sparsity)
    if isinstance(mask, dict):
        mask = keras.saving.deserialize_keras_object(mask)
    if isinstance(mask, MaskRule) and sparsity not in (None, mask.sparsity):
        raise ValueError(f"`sparsity` must be left out or that of `mask`. Received: {sparsity=}, {mask=}")
    return mask
