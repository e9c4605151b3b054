"""Graphs as SavedModels, for the converters of TensorFlow Lite and larq-compute-engine."""

import contextlib
import tempfile

import keras

from keras_mpt.models.rewrite import packed

SIGNATURE = "serving_default"


@contextlib.contextmanager
def saved_model(graph):
    """Yield the path of a temporary SavedModel of a `Graph`, with constants in place of variables."""
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    model = graph.model
    specs = [tf.TensorSpec(x.shape, x.dtype, name) for x, name in zip(model.inputs, graph.inputs, strict=True)]

    def outputs(*inputs):
        return keras.tree.flatten(model(packed(model, inputs), training=False))

    traced = tf.function(outputs, input_signature=specs).get_concrete_function()
    frozen = convert_variables_to_constants_v2(traced)

    def named(*inputs):
        # an output that is also an input or another output needs an operation of its own for its name
        return {name: tf.identity(y) for name, y in zip(graph.outputs, frozen(*inputs), strict=True)}

    module = tf.Module()
    module.serve = tf.function(named, input_signature=specs)
    with tempfile.TemporaryDirectory() as folder:
        # Gradients, such as that of SiLU, may refer to tensors that the frozen function does not have.
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        tf.saved_model.save(module, folder, {SIGNATURE: module.serve.get_concrete_function()}, options)
        yield folder
