"""Hold kernels while nothing that they depend on changes."""

import functools

import keras
from keras import ops

from keras_mpt import _keras, quantizers
from keras_mpt.layers.arguments import layers_of
from keras_mpt.layers.traces import Traces, forget_compiled
from keras_mpt.ops.backend import as_tensor


def hold(model):
    """Let frozen layers of a model hold their kernels instead of computing them at each call.

    Such a layer is as fast as a plain Keras layer, and takes 4 bytes more for each weight. `load_ticket` does this;
    call it after you have frozen layers yourself. Outputs stay the same: if scores, weights or a quantizer change, or
    the layer may train again, it computes its kernels in each call, until you call `hold` again. Files and
    `layer.weights` do not change. With JAX, whose compiled calls get `layer.variables` as their state, these have the
    kernel instead of the variables that determine it.

    With TensorFlow, a `tf.function` of your own does not notice changes to layers after it was traced. If it was traced
    while a kernel was held, it returns NaN once the kernel is released: create it again. If it trains a layer and was
    traced before you froze that layer, do not call it again. The functions of Keras (`fit`, `evaluate`, `predict`) are
    created again for the models that call the layer in their `call`. If a `train_step` or `compute_loss` of your own
    calls another model, such as a teacher, compile again after you have changed that one. With PyTorch, changes that
    autograd does not notice, such as those of `tensor.data`, have no effect on a held kernel.

    Kernels with a shared rule (`masks.GlobalTopK`), which depend on other layers, are not held.

    Args:
        model: A built model.

    Raises:
        TypeError: `model` is no Keras model.
        ValueError: A layer is not built.

    Examples:
        >>> model.trainable = False
        >>> keras_mpt.layers.hold(model)
        >>> logits = model.predict(images)
    """
    for layer in layers_of(model):
        if layer.can_hold:
            layer.hold_kernels()
            layer._traces.models.add(model)
    forget_compiled(model)


class Holding:
    """Mixin of the layers that can hold their kernels; see `hold`.

    A held kernel is right until one of its source variables changes. So their `assign` releases it first. Nothing else
    can change them: with TensorFlow, their `value` is a tensor, not the variable; with JAX, the state of a call lacks
    them. Tensors of PyTorch count their changes.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._traces = Traces()

    @property
    def is_held(self):
        """Whether the layer holds its kernels; see `keras_mpt.layers.hold`."""
        return any(subnet.held is not None for subnet in getattr(self, "_subnets", ()))

    @property
    def variables(self):
        """All variables. With JAX, whose calls get these as state, held kernels instead of their source variables."""
        found = super().variables
        if keras.backend.backend() != "jax" or not hasattr(self, "_traces"):  # during `__init__`
            return found
        if self.is_held:
            hidden = {id(v) for subnet in self._subnets for v in subnet.sources}
            found = [v for v in found if id(v) not in hidden] + [subnet.held for subnet in self._subnets]
        return [*found, *self._traces.variables]

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
        quantizer = quantizers.get_kernel(quantizer)
        self._release()
        self._kernel_quantizer = quantizer
        for subnet in getattr(self, "_subnets", ()):
            subnet.forget_quantizer()
        self._note_change()

    def _note_change(self):
        """Let functions that are compiled already see a setting that changed."""
        if getattr(self, "_subnets", ()):  # without kernels, nothing is compiled
            self._traces.change()

    @property
    def can_hold(self):
        """Whether the layer could hold its kernels: it is built, trains no scores, and has a rule of its own."""
        if not self.built or self.mask.shared or any(subnet.is_trainable for subnet in self._subnets):
            return False
        return all(changes_of(subnet.sources) is not None for subnet in self._subnets)

    def hold_kernels(self, kernels=None):
        """Hold the current kernels.

        Args:
            kernels: Dict from names of kernels to float32 arrays, if they are known; others are computed.
        """
        for subnet in self._subnets:
            if subnet.held is None:
                subnet.held = _variable_of(subnet, (kernels or {}).get(subnet.name))
                for variable in subnet.sources:
                    variable._mpt_layer = self
                    variable.__class__ = _guarded(type(variable))
                _keras.track_in_backend(self, f"held_{subnet.name}", subnet.held)
                subnet.changes_when_held = changes_of(subnet.sources)

    def _release(self):
        """Compute kernels again from now on."""
        if not self.is_held:
            return
        if _keras.in_stateless_scope():
            raise RuntimeError(
                f"Layer {self.name!r} holds its kernel, and stateless code cannot end that: assign to its variables "
                "outside, or set `layer.trainable = True` before"
            )
        for subnet in (each for each in self._subnets if each.held is not None):
            for variable in subnet.sources:
                variable.__class__ = type(variable).__base__
                del variable._mpt_layer
            _make_useless(subnet.held)
            subnet.held = None
            _keras.track_in_backend(self, f"held_{subnet.name}", None)
        self._traces.forget()

    def _held_kernel(self, subnet):
        """Return a held kernel as a tensor; None if it must be computed."""
        if any(map(_keras.is_replaced, subnet.sources)):
            return None
        if changes_of(subnet.sources) != subnet.changes_when_held:
            if not _torch_compiles() and not _keras.in_stateless_scope():
                self._release()
            return None
        return as_tensor(subnet.held)


def changes_of(variables):
    """Return data that differ once a tensor of PyTorch has changed; None if that is unknown; () for other backends."""
    if keras.backend.backend() != "torch":
        return ()
    tensors = [variable._value for variable in variables]
    if _torch_compiles() or any(tensor.is_inference() for tensor in tensors):
        return None
    return [(tensor.data_ptr(), tensor._version) for tensor in tensors]


def _torch_compiles():
    import torch

    return torch.compiler.is_compiling()


def _variable_of(subnet, kernel=None):
    kernel = subnet.effective() if kernel is None else kernel
    with keras.name_scope(subnet.layer.name):
        return keras.Variable(
            lambda shape, dtype: ops.convert_to_tensor(kernel),
            shape=subnet.shape,
            dtype="float32",
            trainable=False,
            autocast=False,
            name=f"held_{subnet.name}",
        )


def _make_useless(variable):
    """Let functions that TensorFlow traced with a held kernel return NaN instead of outdated results."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.init_scope():
            variable.assign(tf.fill(variable.shape, float("nan")))


@functools.cache
def _guarded(cls):
    """Return a class of variables that release the kernels of their layer before they change."""

    class Guarded(cls):
        @property
        def value(self):
            if keras.backend.backend() == "tensorflow":
                return as_tensor(super().value)
            return super().value

        def assign(self, value):
            self._mpt_layer._release()
            return self.assign(value)  # as what it was before

        @property
        def trainable(self):
            return super().trainable

        @trainable.setter
        def trainable(self, value):
            if value:
                self._mpt_layer._release()
                self.trainable = value

    if keras.backend.backend() == "tensorflow":
        for name in _keras.METHODS_OF_TENSORFLOW:
            setattr(Guarded, name, _as_before(cls, name, changes=name == "_restore_from_tensors"))
    return Guarded


def _as_before(cls, name, changes):
    """Return a method that calls that of `cls` on the variable of the backend."""

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
