"""Compiled functions, which keep the settings that layers had when they were traced."""

import weakref

import keras

from keras_mpt import _keras


def forget_compiled(model):
    """Let Keras compile the functions of a model again, also from a callback of `fit`, which calls them by name."""
    for kind in ("train", "test", "predict"):
        if getattr(model, f"{kind}_function") is not None:
            setattr(model, f"{kind}_function", _compiled_again(model, kind))


def _compiled_again(model, kind):
    def function(*args):
        getattr(model, f"make_{kind}_function")(force=True)
        return getattr(model, f"{kind}_function")(*args)

    return function


class Traces:
    """The compiled functions that call a layer.

    Attributes:
        models: Set of the models that called the layer, and whose functions may be compiled. JAX compiles calls without
            the model.
        variables: With JAX, a list that has a variable once a setting changed after a trace: a function is traced again
            if its state has another structure or shape.
    """

    def __init__(self):
        self.models, self.variables, self._in_state = weakref.WeakSet(), [], False

    def note_call(self):
        """Remember the model whose call this is."""
        if keras.backend.backend() == "torch":
            return  # it computes eagerly, and `torch.compile` sees changes of attributes
        self._in_state = self._in_state or _keras.gets_state()
        model = _keras.outermost_layer()
        if isinstance(model, keras.Model):
            self.models.add(model)

    def forget(self):
        """Let Keras compile the functions again."""
        for model in self.models:
            forget_compiled(model)

    def change(self):
        """Let all backends trace the functions again, because a setting of the layer changed."""
        self.forget()
        if keras.backend.backend() == "jax" and self._in_state:
            for model in self.models:  # in the midst of `fit`, which goes by the order of the variables
                model.jax_state_sync()
            size = 1 + sum(variable.shape[0] for variable in self.variables)
            self.variables = [keras.Variable("zeros", shape=(size,), dtype="int8", trainable=False, name="changes")]
