"""Gradients on whichever Keras backend is active, for tests that compare them with formulas."""

import keras
import numpy as np
from keras import ops


def gradient(fn, x, upstream=None, dtype="float32"):
    """Return the gradient of `sum(fn(x) * upstream)` with respect to `x`, as a numpy array.

    Args:
        fn: Function of one tensor that returns one tensor.
        x: Array, cast to `dtype` first.
        upstream: Array in the shape of `fn(x)`, ones if None.
        dtype: The float type to compute in; the result has it too, except that bfloat16 is returned as float32.
    """

    def incoming(y):
        return ops.ones_like(y) if upstream is None else ops.cast(ops.convert_to_tensor(upstream), y.dtype)

    x = ops.cast(ops.convert_to_tensor(x), dtype)
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(x)
            y = fn(x)
        result = tape.gradient(y, x, output_gradients=incoming(y))
    elif backend == "jax":
        import jax

        y, vjp = jax.vjp(fn, x)
        (result,) = vjp(incoming(y))
    elif backend == "torch":
        x = x.detach().requires_grad_(True)
        y = fn(x)
        y.backward(incoming(y))
        result = ops.zeros_like(x) if x.grad is None else x.grad  # None is PyTorch's zero
    else:
        raise NotImplementedError(backend)
    result = ops.cast(result, "float32") if dtype == "bfloat16" else result
    return np.asarray(ops.convert_to_numpy(result))
