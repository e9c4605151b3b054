"""Recurrent layers over two frozen random kernels: that of the inputs, and that of the states."""

import contextlib
import types

import keras

from keras_mpt import _keras, quantizers
from keras_mpt.initializers import layer_seeds
from keras_mpt.layers.base import MPTLayer, kernels_of_call
from keras_mpt.layers.composite import MPTComposite

_KERNELS = types.MappingProxyType({"kernel": "kernel", "recurrent_kernel": "recurrent"})


class MPTCell(MPTLayer):
    """Mixin of the recurrent cells, whose kernels are computed once for all time steps of a call.

    An `input_quantizer` is applied to the inputs, not to the states.
    """

    _kernels = _KERNELS

    def call(self, inputs, states, training=False):
        with self._fixed_kernels(training):
            return super(MPTLayer, self).call(self._quantized(inputs), states, training=training)

    @contextlib.contextmanager
    def _fixed_kernels(self, training):
        kernels = _keras.kept_in_call(self._key)
        with kernels_of_call(self._found_kernels(False) if kernels is None else kernels):
            yield

    @property
    def _key(self):
        return "kernels of a cell", id(self)

    def _kernel_in_use(self, subnet):  # Keras' `LSTM` reads the kernels without a call of the cell on some devices
        kernels = _keras.kept_in_call(self._key)
        return super()._kernel_in_use(subnet) if kernels is None else kernels[subnet.number]

    def get_dropout_mask(self, step_input):
        """Compute the kernels, too: Keras' `RNN` calls this before its loop, in which nothing can be remembered."""
        if self._subnets and not self._is_in_call():
            _keras.put_into_call(self._key, self._found_kernels(_keras.is_training()))
        return super().get_dropout_mask(step_input)

    def reset_dropout_mask(self):
        """Forget the kernels, too: `RNN` calls this behind its loop."""
        _keras.kept_in_call(self._key, remove=True)
        super().reset_dropout_mask()


@keras.saving.register_keras_serializable(package="keras_mpt")
class MPTSimpleRNNCell(MPTCell, keras.layers.SimpleRNNCell):
    """`keras.layers.SimpleRNNCell` over two frozen random kernels, for `keras.layers.RNN`.

    Args:
        *args, **kwargs: Those of the Keras layer (`use_bias` is False by default); `sparsity`, `kernel_quantizer`,
            `input_quantizer`, `mask`, `scores_initializer`, `scores_regularizer` and `seed` of `MPTLayer`.

    Raises:
        ValueError: See `MPTLayer`.

    Kernels: `kernel` `(inputs, units)`, `recurrent_kernel` `(units, units)`.
    """


@keras.saving.register_keras_serializable(package="keras_mpt")
class MPTLSTMCell(MPTCell, keras.layers.LSTMCell):
    """`keras.layers.LSTMCell` over two frozen random kernels, for `keras.layers.RNN`.

    Args:
        *args, **kwargs: Those of the Keras layer (`use_bias` is False by default); `sparsity`, `kernel_quantizer`,
            `input_quantizer`, `mask`, `scores_initializer`, `scores_regularizer` and `seed` of `MPTLayer`.

    Raises:
        ValueError: See `MPTLayer`.

    Kernels: `kernel` `(inputs, 4 * units)`, `recurrent_kernel` `(units, 4 * units)`.
    """


@keras.saving.register_keras_serializable(package="keras_mpt")
class MPTGRUCell(MPTCell, keras.layers.GRUCell):
    """`keras.layers.GRUCell` over two frozen random kernels, for `keras.layers.RNN`.

    Args:
        *args, **kwargs: Those of the Keras layer (`use_bias` is False by default); `sparsity`, `kernel_quantizer`,
            `input_quantizer`, `mask`, `scores_initializer`, `scores_regularizer` and `seed` of `MPTLayer`.

    Raises:
        ValueError: See `MPTLayer`.

    Kernels: `kernel` `(inputs, 3 * units)`, `recurrent_kernel` `(units, 3 * units)`.
    """


class MPTRecurrent(MPTComposite):
    """Mixin of the recurrent layers, whose cell is an MPT layer.

    The cell has the layer's seed; one that goes backwards, such as the second of `Bidirectional`, has another one.
    """

    _kernels = _KERNELS
    _inner = ("cell",)
    _cell_class = None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        seed = next(layer_seeds(self._seed)) if self.go_backwards else self._seed
        left_out = (*self._meaningless_arguments(), "seed")
        config = {name: value for name, value in self.cell.get_config().items() if name not in left_out}
        for argument in self._kernels.values():
            config[f"{argument}_initializer"] = getattr(self.cell, f"{argument}_initializer")
        cell = self._cell_class(**config, **self._settings(seed))
        cell.implementation = getattr(self.cell, "implementation", None)
        self._replace("cell", cell)
        if self.input_quantizer is not None and hasattr(self, "use_cudnn"):
            self.use_cudnn = False  # it would not call the cell, which quantizes

    def prepare_plain(self, inputs):
        """Quantize `inputs` as the cell does, in plain Keras operations."""
        quantizer = quantizers.plain(self.input_quantizer)
        return inputs if quantizer is None else quantizer(inputs)


@keras.saving.register_keras_serializable(package="keras_mpt")
class MPTSimpleRNN(MPTRecurrent, keras.layers.SimpleRNN):
    """`keras.layers.SimpleRNN` over two frozen random kernels. The masks are found once a call, not once a time step.

    Args:
        *args, **kwargs: Those of the Keras layer (`use_bias` is False by default); `sparsity`, `kernel_quantizer`,
            `input_quantizer`, `mask`, `scores_initializer`, `scores_regularizer` and `seed` of `MPTLayer`. `seed` is
            that of dropout, too.

    Raises:
        ValueError: See `MPTLayer`.

    Input shape: `(batch, steps, inputs)`. Output shape: `(batch, units)`, or `(batch, steps, units)` with
    `return_sequences=True`. Kernels, of `layer.cell`: `kernel` `(inputs, units)`, `recurrent_kernel`
    `(units, units)`.

    Examples:
        >>> layer = keras_mpt.layers.MPTSimpleRNN(16, seed=1)
        >>> layer(np.ones((2, 7, 4), "float32")).shape
        (2, 16)
    """

    _cell_class = MPTSimpleRNNCell


@keras.saving.register_keras_serializable(package="keras_mpt")
class MPTLSTM(MPTRecurrent, keras.layers.LSTM):
    """`keras.layers.LSTM` over two frozen random kernels. The masks are found once a call, not once a time step.

    Args:
        *args, **kwargs: Those of the Keras layer (`use_bias` is False by default); `sparsity`, `kernel_quantizer`,
            `input_quantizer`, `mask`, `scores_initializer`, `scores_regularizer` and `seed` of `MPTLayer`. `seed` is
            that of dropout, too.

    Raises:
        ValueError: See `MPTLayer`.

    Input shape: `(batch, steps, inputs)`. Output shape: `(batch, units)`, or `(batch, steps, units)` with
    `return_sequences=True`. Kernels, of `layer.cell`: `kernel` `(inputs, 4 * units)`, `recurrent_kernel`
    `(units, 4 * units)`.

    Examples:
        >>> layer = keras_mpt.layers.MPTLSTM(16, seed=1)
        >>> layer(np.ones((2, 7, 4), "float32")).shape
        (2, 16)
    """

    _cell_class = MPTLSTMCell


@keras.saving.register_keras_serializable(package="keras_mpt")
class MPTGRU(MPTRecurrent, keras.layers.GRU):
    """`keras.layers.GRU` over two frozen random kernels. The masks are found once a call, not once a time step.

    Args:
        *args, **kwargs: Those of the Keras layer (`use_bias` is False by default); `sparsity`, `kernel_quantizer`,
            `input_quantizer`, `mask`, `scores_initializer`, `scores_regularizer` and `seed` of `MPTLayer`. `seed` is
            that of dropout, too.

    Raises:
        ValueError: See `MPTLayer`.

    Input shape: `(batch, steps, inputs)`. Output shape: `(batch, units)`, or `(batch, steps, units)` with
    `return_sequences=True`. Kernels, of `layer.cell`: `kernel` `(inputs, 3 * units)`, `recurrent_kernel`
    `(units, 3 * units)`.

    Examples:
        >>> layer = keras_mpt.layers.MPTGRU(16, seed=1)
        >>> layer(np.ones((2, 7, 4), "float32")).shape
        (2, 16)
    """

    _cell_class = MPTGRUCell
