"""Kernels that are kept while nobody changes what they are made of."""

import functools
import weakref

import keras

from keras_mpt import _keras
from keras_mpt.arguments import check_instance


def hold(model):
    """Let the layers of a model that are not trainable keep their kernels instead of making them at each call.

    Such a layer costs what a plain Keras layer costs, and 4 bytes more for each weight. `load_ticket` does this; call
    it after you have frozen layers yourself. Outputs stay the same: whoever changes what a kernel is made of (assigns
    scores, sets weights, loads a file, gives another quantizer, lets the layer train) makes its layer compute kernels
    again, from the next call on, until `hold` is called again. While a kernel is held, `layer.variables` has it in the
    place of scores, frozen kernel and the state of the rule; `layer.weights` and files are as ever.

    With TensorFlow, a `tf.function` of your own knows nothing of changes to layers after it was traced. One that was
    traced while a kernel was held returns NaN once it is not: make such functions anew. One that trains a layer, and
    was traced before you froze it, must not be called any more. Those of Keras (`fit`, `evaluate`, `predict`) are made
    anew.

    Kernels with a shared rule (`masks.GlobalTopK`), which depend on other layers, are not held.

    Args:
        model: A built model.

    Raises:
        TypeError: `model` is no Keras model.

    Examples:
        >>> model.trainable = False
        >>> keras_mpt.layers.hold(model)
        >>> logits = model.predict(images)
    """
    check_instance("model", model, keras.Model, "a Keras model")
    for layer in _keras.layers_inside(model):
        if hasattr(layer, "_subnets") and layer.built and not layer.trainable and not layer.mask.shared:
            layer._hold()
            layer._holders.add(model)
    forget_compiled(model)


def forget_compiled(model):
    """Let Keras make anew what it has compiled of a model, and what it told the backend of the model's variables."""
    model.train_function = model.test_function = model.predict_function = None
    if keras.backend.backend() == "torch":
        for layer in (model, *_keras.layers_inside(model)):
            _keras.forget_parameters(layer)


class Holding:
    """What MPT layers do to hold their kernels; see `hold`.

    Kept kernels are right as long as no variable changes of those that they are made of. So these are out of reach
    meanwhile: their `assign` ends the holding first, what they give out as their value is no variable of the backend,
    and the layer's `variables`, which JAX takes as the state of a call, do not have them.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._holders = weakref.WeakSet()

    @property
    def is_held(self):
        """Whether the layer keeps its kernels; see `keras_mpt.layers.hold`."""
        return any(subnet.held is not None for subnet in getattr(self, "_subnets", ()))

    @property
    def variables(self):
        """All variables; those of a held kernel in the place of what it is made of."""
        found = super().variables
        if not self.is_held:
            return found
        hidden = {id(v) for subnet in self._subnets for v in subnet.sources}
        return [v for v in found if id(v) not in hidden] + [subnet.held for subnet in self._subnets]

    @property
    def trainable(self):
        """Whether the scores are trained."""
        return self._trainable

    @trainable.setter
    def trainable(self, value):
        if value:
            self._release()
        keras.layers.Layer.trainable.fset(self, value)

    @property
    def kernel_quantizer(self):
        """The kernel quantizer."""
        return self._kernel_quantizer

    @kernel_quantizer.setter
    def kernel_quantizer(self, quantizer):
        self._release()
        self._kernel_quantizer = quantizer

    def _hold(self):
        self._release()
        for subnet in self._subnets:
            subnet.held = _variable_of(subnet)
            for variable in subnet.sources:
                variable._mpt_layer = self
                variable.__class__ = _guarded(type(variable))
            _keras.track_in_backend(self, f"held_{subnet.name}", subnet.held)

    def _release(self):
        """Compute kernels again from now on."""
        if not self.is_held:
            return
        if _keras.in_stateless_scope():
            raise RuntimeError(
                f"Layer {self.name!r} keeps its kernel, and stateless code cannot end that: assign to its variables "
                "outside, or set `layer.trainable = True` before"
            )
        for subnet in self._subnets:
            for variable in subnet.sources:
                variable.__class__ = type(variable).__base__
                del variable._mpt_layer
            _make_useless(subnet.held)
            subnet.held = None
            _keras.track_in_backend(self, f"held_{subnet.name}", None)
        for model in self._holders:
            forget_compiled(model)

    def _note_holding(self):
        """Note the model in whose call a held kernel is used, which Keras may be compiling."""
        model = _keras.outermost_layer()
        if isinstance(model, keras.Model):
            self._holders.add(model)


def _variable_of(subnet):
    kernel = subnet.effective()
    with keras.name_scope(subnet.layer.name):
        return keras.Variable(
            lambda shape, dtype: kernel,
            shape=subnet.shape,
            dtype="float32",
            trainable=False,
            autocast=False,
            name=f"held_{subnet.name}",
        )


def _make_useless(variable):
    """Let functions of TensorFlow that were traced while a kernel was held fail for all to see: they would be wrong."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.init_scope():
            variable.assign(tf.fill(variable.shape, float("nan")))


@functools.cache
def _guarded(cls):
    """Return a class of variables that end the holding of their layer before they change."""

    class Guarded(cls):
        @property
        def value(self):
            value, backend = super().value, keras.backend.backend()
            if backend == "tensorflow":
                import tensorflow as tf

                return tf.convert_to_tensor(value)
            return value.detach().clone() if backend == "torch" else value

        def assign(self, value):
            self._mpt_layer._release()
            return self.assign(value)  # as what it was before

    if keras.backend.backend() == "tensorflow":
        for name in _keras.METHODS_OF_TENSORFLOW:
            setattr(Guarded, name, _as_before(cls, name, changes=name == "_restore_from_tensors"))
    return Guarded


def _as_before(cls, name, changes):
    """Return a method that does what one of `cls` does with the variable of the backend."""

    def method(self, *args, **kwargs):
        if changes:
            self._mpt_layer._release()
            return getattr(self, name)(*args, **kwargs)
        guarded, self.__class__ = self.__class__, cls
        try:
            return getattr(self, name)(*args, **kwargs)
        finally:
            self.__class__ = guarded

    return method
