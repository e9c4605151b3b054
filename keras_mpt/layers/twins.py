"""From MPT layers to the plain Keras layers they are made of, and back."""

import inspect

import keras

from keras_mpt.layers import arguments


class PlainTwin:
    """What an MPT layer knows of its plain Keras class."""

    _kernels = {}

    @classmethod
    def _plain_class(cls):
        """Return the Keras layer that this one is made of."""
        return next(b for b in cls.__mro__ if issubclass(b, keras.layers.Layer) and not issubclass(b, PlainTwin))

    @classmethod
    def _plain_arguments(cls):
        """Return the arguments of the plain class and their `inspect.Parameter`, by name."""
        return arguments.of(cls._plain_class())

    @classmethod
    def _meaningless_arguments(cls):
        kernels = [f"{argument}_{what}" for argument in cls._kernels.values() for what in ("regularizer", "constraint")]
        return (*kernels, *arguments.FOR_TRAINED_KERNELS)

    def _by_name(self, args, kwargs):
        """Return the arguments of the Keras layer as keyword arguments, after checking their kinds."""
        named = inspect.signature(self._plain_class().__init__).bind_partial(self, *args).arguments
        del named["self"]
        for name in named:
            if name in kwargs:
                raise TypeError(f"{type(self).__name__}() got multiple values for argument {name!r}")
        arguments.check({**named, **kwargs})
        return {**named, **kwargs}

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
        initializers = {f"{argument}_initializer": kernel_initializer for argument in self._kernels.values()}
        return self._plain_class().from_config({**self._keras_config(), **initializers})

    @classmethod
    def from_plain(cls, layer, kernel_initializer=None, **settings):
        """Return the unbuilt MPT layer like a plain one, of which `take_weights` takes the weights.

        Args:
            layer: A layer of Keras, of the class that this one is made of.
            kernel_initializer: Of the frozen kernels; None: `"signed_constant"`.
            **settings: Arguments of `MPTLayer`.
        """
        left_out = (*cls._meaningless_arguments(), "seed")
        config = {name: value for name, value in layer.get_config().items() if name not in left_out}
        for argument in cls._kernels.values():
            config[f"{argument}_initializer"] = kernel_initializer
        return cls(**config, **settings)
