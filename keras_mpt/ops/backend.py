"""What Keras has no operation for."""

import keras
import numpy as np
from keras import ops

from keras_mpt._types import Tensor

LONGEST_ROW = 1 << 24  # up to here float32 counts exactly
_NAN_BITS = 0x7FC00000


def to_numpy(tensor: Tensor, dtype: str | None = None) -> np.ndarray:
    """Return a tensor or variable as an array of its own: Keras' conversion shares PyTorch's memory, which may change.

    Args:
        tensor: Of any shape.
        dtype: Of the array; None: the tensor's own, but float32 for narrow floats, one of which numpy lacks.
    """
    if dtype is None and keras.backend.standardize_dtype(tensor.dtype) in ("bfloat16", "float16"):
        dtype = "float32"
    return np.array(ops.convert_to_numpy(tensor if dtype is None else ops.cast(tensor, dtype)))


def as_tensor(x):
    """Return the present value of a variable, or of an array; Keras' conversion leaves TensorFlow's variables alone."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.convert_to_tensor(x)
    return ops.convert_to_tensor(x)


def nan_where(condition):
    """Return NaN where a boolean scalar is true, else 0, as float32.

    It is computed from bits: `tf.debugging.enable_check_numerics` and similar tools would find a constant NaN.
    """
    return bitcast(ops.cast(ops.where(condition, _NAN_BITS, 0), "int32"), "float32")


def bitcast(x, dtype):
    """Return the bits of a float32 tensor as int32, or the other way round."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.bitcast(x, dtype)
    if backend == "jax":
        import jax

        return jax.lax.bitcast_convert_type(x, dtype)
    if backend == "torch":
        import torch

        return x.detach().view(getattr(torch, dtype))
    raise ValueError(f"keras_mpt needs the backend tensorflow, jax or torch. Received: keras backend {backend!r}")


def negated(x):
    """Return `-x` of a float32 tensor by its sign bits: XLA may negate subnormal numbers to 0, in some places only."""
    return bitcast(ops.bitwise_xor(bitcast(x, "int32"), np.int32(-(2**31))), "float32")


def count_true(conditions):
    """Return how many entries of a boolean tensor are true, an int32 scalar; rows of a matrix up to LONGEST_ROW."""
    if keras.backend.backend() == "torch":
        import torch

        return torch.count_nonzero(conditions).to(torch.int32)  # without a copy of four times the size
    if len(conditions.shape) == 2:  # float32 is summed faster
        conditions = ops.sum(ops.cast(conditions, "float32"), axis=-1)
    return sum_int32(ops.cast(conditions, "int32"))


def sum_int32(x, axis=None):
    """Return a sum of int32 entries as int32, which JAX makes wider where `jax_enable_x64` is set."""
    return ops.cast(ops.sum(x, axis=axis), "int32")


def cumsum_int32(x):
    """Return the sums of int32 entries up to each of them, likewise."""
    return ops.cast(ops.cumsum(x), "int32")


def no_gradient(x):
    """Return the gradient of a loss to a tensor on which it does not depend, as a custom gradient has to give it."""
    return None if keras.backend.backend() == "torch" else ops.zeros_like(x)  # PyTorch would fill it for nothing


def traced_once(function):
    """Let TensorFlow trace and optimize `function` once for all layers of a model, JAX once per shape.

    To do it anew for each of many layers takes minutes; in eager use, JAX would compile it at each call.
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        not_inlined = {"_noinline": True}
        traced = tf.function(function, autograph=False, reduce_retracing=True, experimental_attributes=not_inlined)
        return lambda *tensors: traced(*tf.nest.map_structure(tf.convert_to_tensor, tensors))  # they may be variables
    if backend == "jax":
        import jax

        return jax.jit(function)
    return function


def traced_in_graphs(function):
    """Let TensorFlow trace `function` at its first call within a graph, and use that trace in all graphs from then on.

    Unlike `traced_once`, it may use the shapes of its tensors: all calls must have the same. Elsewhere it is called.
    """
    if keras.backend.backend() != "tensorflow":
        return function
    import tensorflow as tf

    traced = tf.function(function, autograph=False, experimental_attributes={"_noinline": True})

    def called(*tensors):
        return function(*tensors) if tf.executing_eagerly() else traced(*tensors)

    return called


def current_trace():
    """Return what identifies the graph or trace that is being made, for its tensors are of no use outside of it."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
    if backend == "jax":
        import jax.extend

        moved = hasattr(jax.extend.core, "get_opaque_trace_state")  # there since JAX 0.10, before in jax.core
        return (jax.extend.core if moved else jax.core).get_opaque_trace_state()
    return None
