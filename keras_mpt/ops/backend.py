"""Operations that Keras lacks."""

import functools

import keras
import numpy as np
from keras import ops

from keras_mpt._types import Tensor

LONGEST_ROW = 1 << 24  # up to here float32 counts exactly
_NAN_BITS = 0x7FC00000


def to_numpy(tensor: Tensor, dtype: str | None = None) -> np.ndarray:
    """Copy a tensor or variable to a numpy array. (Keras' conversion shares memory with PyTorch tensors.)

    Args:
        tensor: Tensor or variable of any shape.
        dtype: Dtype of the array; None: that of the tensor, except float32 for bfloat16 and float16.
    """
    if dtype is None and keras.backend.standardize_dtype(tensor.dtype) in ("bfloat16", "float16"):
        dtype = "float32"
    return np.array(ops.convert_to_numpy(tensor if dtype is None else ops.cast(tensor, dtype)))


def as_tensor(x):
    """Convert a variable or array to a tensor. (Keras' conversion returns TensorFlow variables unchanged.)"""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.convert_to_tensor(x)
    return ops.convert_to_tensor(x)


def nan_where(condition):
    """Return NaN where a boolean scalar is true, else 0, as float32.

    The NaN is computed from its bits, because tools such as `tf.debugging.enable_check_numerics` report constant ones.
    """
    return bitcast(ops.cast(ops.where(condition, _NAN_BITS, 0), "int32"), "float32")


def bitcast(x, dtype):
    """Reinterpret the bits of a float32 tensor as int32, or the reverse."""
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
    """Return `-x` of a float32 tensor by flipping its sign bits: XLA may flush negated subnormal numbers to 0."""
    return bitcast(ops.bitwise_xor(bitcast(x, "int32"), np.int32(-(2**31))), "float32")


def count_true(conditions):
    """Count the true entries of a boolean tensor, as an int32 scalar; rows of a matrix have at most LONGEST_ROW."""
    if keras.backend.backend() == "torch":
        import torch

        return torch.count_nonzero(conditions).to(torch.int32)  # avoids a copy of four times the size
    if keras.backend.backend() == "jax":
        return _reduction("add", 0)(ops.cast(conditions, "int32"))
    if len(conditions.shape) == 2:  # sums of float32 are faster
        conditions = ops.sum(ops.cast(conditions, "float32"), axis=-1)
    return sum_int32(ops.cast(conditions, "int32"))


def max_int32(x):
    """Return the largest of int32 entries."""
    if keras.backend.backend() == "jax":
        return _reduction("max", -(2**31))(x)
    return ops.max(x)


@functools.cache
def _reduction(name, first):
    """Return a function that reduces int32 entries by `jax.lax.<name>`, in a single loop.

    For CPUs, XLA rewrites a reduction of one tensor to a tree of windows, which protects sums of floats. With integers,
    it only takes longer, and each window is compiled separately. It leaves reductions of two tensors alone.
    """
    import jax

    function, first = getattr(jax.lax, name), np.int32(first)

    def both(a, b):
        return function(a[0], b[0]), function(a[1], b[1])

    return jax.jit(lambda x: jax.lax.reduce((x, x), (first, first), both, tuple(range(x.ndim)))[0])


def sum_int32(x, axis=None):
    """Return the sum of int32 entries as int32. (JAX widens it if `jax_enable_x64` is set.)"""
    return ops.cast(ops.sum(x, axis=axis), "int32")


def cumsum_int32(x):
    """Return the cumulative sum of int32 entries as int32."""
    return ops.cast(ops.cumsum(x), "int32")


def no_gradient(x):
    """Return what a custom gradient returns for a tensor that gets no gradient."""
    return None if keras.backend.backend() == "torch" else ops.zeros_like(x)  # PyTorch takes None


def traced_once(function):
    """Wrap a function so that TensorFlow traces and optimizes it once for all layers of a model, JAX once per shape.

    Tracing it again for each of many layers takes minutes, and eager JAX would compile it in every call.
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
        return function  # compiled by itself, JAX would sum alpha in another order
    import tensorflow as tf

    traced = tf.function(function, autograph=False, experimental_attributes={"_noinline": True})

    def called(*tensors):
        return function(*tensors) if tf.executing_eagerly() else traced(*tensors)

    return called


def eager_in_torch(function):
    """Let PyTorch call `function` as it is within `torch.compile`.

    For searches, whose loops end when the data say so, and for what changes attributes of layers.
    """
    if keras.backend.backend() != "torch":
        return function
    import torch

    return torch.compiler.disable(function)


def current_trace():
    """Return an object that identifies the current graph or trace. Its tensors are invalid in others; None: eager."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
    if backend == "jax":
        import jax.extend

        moved = hasattr(jax.extend.core, "get_opaque_trace_state")  # there since JAX 0.10, before in jax.core
        return (jax.extend.core if moved else jax.core).get_opaque_trace_state()
    return None
