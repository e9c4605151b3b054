"""The arguments of MPT layers, and the plain Keras layers they derive from."""

import inspect

import keras

from keras_mpt import initializers, quantizers
from keras_mpt.arguments import received
from keras_mpt.layers import arguments
from keras_mpt.masks import MaskRule, TopK

DEFAULT_SPARSITY = 0.5


class PlainTwin:
    """Base of the MPT layers and of the layers made of them: arguments, config, and the plain Keras class."""

    _kernels = {}

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        arguments.show(cls)

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
        non_trainable=(),
        **kwargs,
    ):
        kwargs = self._by_name(args, kwargs)
        plain = self._plain_arguments()
        if "use_bias" in plain:
            kwargs.setdefault("use_bias", False)
        for argument in self._kernels.values():
            initializer = f"{argument}_initializer"
            given = kwargs.get(initializer)
            kwargs[initializer] = initializers.get("signed_constant" if given is None else given, initializer)
        for argument in self._meaningless_arguments():
            value = kwargs.pop(argument, None)
            if value is not None:
                hint = "the kernel is frozen. See `scores_regularizer`"
                raise ValueError(f"`{argument}` has no meaning: {hint}. {received(argument, value)}")
        seed = initializers.check_seed(seed)
        if "seed" in plain:
            kwargs["seed"] = keras_seed(seed)
        super().__init__(**kwargs)
        self._check_policy()
        self.mask = _mask_rule(sparsity, mask)
        self.kernel_quantizer = kernel_quantizer
        self.input_quantizer = input_quantizer
        first_scores = "kaiming_uniform" if scores_initializer is None else scores_initializer
        self.scores_initializer = initializers.get(first_scores, "scores_initializer")
        self.scores_regularizer = arguments.regularizer("scores_regularizer", scores_regularizer)
        self._seed = seed
        self._non_trainable = arguments.chosen("non_trainable", non_trainable, self._parts())

    def _check_policy(self):
        if self.quantization_mode is not None:
            raise ValueError(
                "`dtype` must not quantize: the kernel is quantized already, see `kernel_quantizer`. "
                f"Received: a policy of {self.quantization_mode!r} for layer {self.name!r}"
            )

    @property
    def mask(self):
        """The mask rule."""
        return self._mask

    @mask.setter
    def mask(self, rule):
        if self.built:
            raise AttributeError(
                f"`mask` of layer {self.name!r} cannot be assigned to once the layer is built. How many weights stay "
                f"is changed by `layer.set_sparsity(sparsity)`. Received: {rule!r}"
            )
        if not isinstance(rule, MaskRule):
            raise ValueError(f"`mask` must be a rule of keras_mpt.masks, such as TopK(0.5). Received: mask={rule!r}")
        self._mask = rule

    @property
    def input_quantizer(self):
        """The quantizer of the inputs, or None."""
        return self._input_quantizer

    @input_quantizer.setter
    def input_quantizer(self, quantizer):
        quantizer = quantizers.get_activation(quantizer)
        if quantizer is not None:
            self._check_input_quantizer(quantizer)
        self._input_quantizer = quantizer

    def _check_input_quantizer(self, quantizer):
        """Raise ValueError if the layer cannot quantize its inputs with this object."""
        if getattr(self, "data_format", None) == "channels_first" and quantizers.is_per_channel(quantizer):
            raise ValueError(
                "`input_quantizer` with a scale for each channel needs channels last. Received: "
                f"input_quantizer={quantizer!r}, data_format={self.data_format!r}"
            )

    @property
    def sparsity(self):
        """Fraction of the weights that the mask rule removes; `set_sparsity` does not change it."""
        return self.mask.sparsity

    @sparsity.setter
    def sparsity(self, value):
        raise AttributeError(
            f"`sparsity` of layer {self.name!r} cannot be assigned to. How many weights stay is changed by "
            f"`layer.set_sparsity(sparsity)`, or `callbacks.SparsitySchedule`. Received: {value!r}"
        )

    @property
    def seed(self):
        """The seed of the frozen kernels and of the first scores."""
        return self._seed

    @seed.setter
    def seed(self, value):
        if hasattr(self, "_seed"):  # before, Keras' own `__init__` assigns the bits of it that are for dropout
            raise AttributeError(
                f"`seed` of layer {self.name!r} cannot be assigned to: pass it to {type(self).__name__}(). "
                f"Received: {value!r}"
            )

    @classmethod
    def _plain_class(cls):
        """Return the Keras layer that this class derives from."""
        return next(b for b in cls.__mro__ if issubclass(b, keras.layers.Layer) and not issubclass(b, PlainTwin))

    @classmethod
    def _plain_arguments(cls):
        """Return the arguments of the plain class and their `inspect.Parameter`, by name."""
        return arguments.of(cls._plain_class())

    @classmethod
    def _parts(cls):
        """Return the names of the parts that can be frozen on their own, see `non_trainable`."""
        return tuple(cls._kernels)

    @classmethod
    def _meaningless_arguments(cls):
        kernels = [f"{argument}_{what}" for argument in cls._kernels.values() for what in ("regularizer", "constraint")]
        return (*kernels, *arguments.FOR_TRAINED_KERNELS)

    def _by_name(self, args, kwargs):
        """Return the arguments of the Keras layer as keyword arguments, checked."""
        named = inspect.signature(self._plain_class().__init__).bind_partial(self, *args).arguments
        named.pop(next(iter(named)))  # `self`
        for name in named:
            if name in kwargs:
                raise TypeError(f"{type(self).__name__}() got multiple values for argument {name!r}")
        return arguments.checked({**named, **kwargs})

    def plain(self, kernel_initializer="zeros", **changes):
        """Return an unbuilt Keras layer of the same shape, to be called on the result of `prepare_plain`.

        Args:
            kernel_initializer: Initializer of its kernels.
            **changes: Arguments of the Keras layer to change, such as `dtype`.

        Raises:
            ValueError: The class overrides `call`, which the Keras layer would lack.
        """
        ours = next(base for base in type(self).__mro__ if base.__module__.split(".")[0] == "keras_mpt")
        if type(self).call is not ours.call:
            raise ValueError(
                f"Layer {self.name!r} must compute what {ours.__name__} does to become a plain Keras layer. Received: "
                f"a {type(self).__name__} with a `call` of its own"
            )
        of_kernels = {f"{argument}_initializer": kernel_initializer for argument in self._kernels.values()}
        return self._plain_class().from_config({**self._keras_config(), **of_kernels, **changes})

    @classmethod
    def kernels_of(cls, layer):
        """Return the kernels of a built plain layer of this class, in the order of `subnets`.

        Returns:
            List of `(variable, initializer)`.
        """
        arguments = cls._kernels.items()
        return [(getattr(layer, name), getattr(layer, f"{argument}_initializer")) for name, argument in arguments]

    @classmethod
    def from_plain(cls, layer, kernel_initializer=None, **settings):
        """Return an unbuilt MPT layer with the config of a plain one; `take_weights` takes over its weights.

        Args:
            layer: A layer of the Keras class that this class derives from.
            kernel_initializer: Initializer of the frozen kernels; None: those of `layer`.
            **settings: Arguments of `MPTLayer`.
        """
        left_out = (*cls._meaningless_arguments(), "seed")
        config = {name: value for name, value in layer.get_config().items() if name not in left_out}
        if kernel_initializer is not None:
            config.update({f"{argument}_initializer": kernel_initializer for argument in cls._kernels.values()})
        return cls(**{**config, **settings})

    def quantize(self, *args, **kwargs):
        """Refuse Keras' quantization: see `kernel_quantizer`.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(f"{type(self).__name__} is quantized already; see `kernel_quantizer`.")

    def _settings(self, seed):
        """Return the arguments of an inner MPT layer with this seed."""
        return {
            "mask": self.mask,
            "kernel_quantizer": self.kernel_quantizer,
            "input_quantizer": self.input_quantizer,
            "scores_initializer": self.scores_initializer,
            "scores_regularizer": self.scores_regularizer,
            "seed": seed,
        }

    def _keras_config(self):
        config = super().get_config()
        config = {name: value for name, value in config.items() if name not in self._meaningless_arguments()}
        return {**config, "seed": keras_seed(self._seed)} if "seed" in config else config

    def get_config(self):
        parts = {"non_trainable": list(self.non_trainable)} if self.non_trainable else {}  # older versions lack it
        return {
            **self._keras_config(),
            "sparsity": self.sparsity,
            "mask": keras.saving.serialize_keras_object(self.mask),
            "kernel_quantizer": quantizers.serialize(self.kernel_quantizer),
            "input_quantizer": quantizers.serialize(self.input_quantizer),
            "scores_initializer": keras.initializers.serialize(self.scores_initializer),
            "scores_regularizer": keras.regularizers.serialize(self.scores_regularizer),
            "seed": self._seed,
            **parts,
        }


def keras_seed(seed):
    """Return 31 bits of a layer's seed, for Keras' random numbers in training, such as dropout."""
    return seed & 0x7FFFFFFF


def _mask_rule(sparsity, mask):
    if mask is None:
        return TopK(DEFAULT_SPARSITY if sparsity is None else sparsity)
    if isinstance(mask, dict):
        mask = keras.saving.deserialize_keras_object(mask)
    if isinstance(mask, MaskRule) and sparsity not in (None, mask.sparsity):
        raise ValueError(f"`sparsity` must be left out or that of `mask`. Received: {sparsity=}, {mask=}")
    return mask
