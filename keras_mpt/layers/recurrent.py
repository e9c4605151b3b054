"""Recurrent layers with two frozen random kernels, one for the inputs and one for the states."""

import contextlib
import types

import keras

from keras_mpt import _keras, quantizers
from keras_mpt.initializers import layer_seeds
from keras_mpt.layers.arguments import as_floats
from keras_mpt.layers.base import MPTLayer, kernels_of_call
from keras_mpt.layers.composite import MPTComposite

_KERNELS = types.MappingProxyType({"kernel": "kernel", "recurrent_kernel": "recurrent"})


class MPTCell(MPTLayer):
    """Mixin of the recurrent cells. A call computes the kernels once for all its time steps.

    An `input_quantizer` quantizes the inputs, not the states.
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
        """Compute the kernels as well: Keras' `RNN` calls this before its loop, which can store nothing."""
        if self._subnets and not self._is_in_call():
            _keras.put_into_call(self._key, self._found_kernels(_keras.is_training()))
        return super().get_dropout_mask(step_input)

    def reset_dropout_mask(self):
        """Forget the kernels as well: `RNN` calls this after its loop."""
        _keras.kept_in_call(self._key, remove=True)
        super().reset_dropout_mask()


@keras.saving.register_keras_serializable(package="keras_mpt")
class MPTSimpleRNNCell(MPTCell, keras.layers.SimpleRNNCell):
    """`keras.layers.SimpleRNNCell` with two masked, frozen random kernels, for `keras.layers.RNN`.

    Args:
        *args, **kwargs: Arguments of the Keras layer (`use_bias` defaults to False) and of `MPTLayer`.

    Raises:
        ValueError: See `MPTLayer`.

    Kernels: `kernel` `(inputs, units)`, `recurrent_kernel` `(units, units)`.
    """


@keras.saving.register_keras_serializable(package="keras_mpt")
class MPTLSTMCell(MPTCell, keras.layers.LSTMCell):
    """`keras.layers.LSTMCell` with two masked, frozen random kernels, for `keras.layers.RNN`.

    Args:
        *args, **kwargs: Arguments of the Keras layer (`use_bias` defaults to False) and of `MPTLayer`.

    Raises:
        ValueError: See `MPTLayer`.

    Kernels: `kernel` `(inputs, 4 * units)`, `recurrent_kernel` `(units, 4 * units)`.
    """


@keras.saving.register_keras_serializable(package="keras_mpt")
class MPTGRUCell(MPTCell, keras.layers.GRUCell):
    """`keras.layers.GRUCell` with two masked, frozen random kernels, for `keras.layers.RNN`.

    Args:
        *args, **kwargs: Arguments of the Keras layer (`use_bias` defaults to False) and of `MPTLayer`.

    Raises:
        ValueError: See `MPTLayer`.

    Kernels: `kernel` `(inputs, 3 * units)`, `recurrent_kernel` `(units, 3 * units)`.
    """


class MPTRecurrent(MPTComposite):
    """Mixin of the recurrent layers, whose cell is an MPT layer.

    The cell has the layer's seed; with `go_backwards`, as in the second layer of `Bidirectional`, one derived from it.
    """

    _kernels = _KERNELS
    _inner = ("cell",)
    _cell_class = None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        seed = next(layer_seeds(self._seed)) if self.go_backwards else self._seed
        names = [f"{argument}_initializer" for argument in self._kernels.values()]
        initializers = {name: getattr(self.cell, name) for name in names}  # as they are: a function has no config
        cell = self._cell_class.from_plain(self.cell, **initializers, **self._settings(seed, "cell"))
        cell.implementation = getattr(self.cell, "implementation", None)
        _keras.replace_layer(self, "cell", cell)

    @property
    def use_cudnn(self):
        """Whether Keras may compute without a call of the cell: not with an input quantizer, which the cell applies."""
        return self._use_cudnn if self.input_quantizer is None else False

    @use_cudnn.setter
    def use_cudnn(self, value):
        self._use_cudnn = value

    def prepare_plain(self, inputs):
        """Quantize `inputs` as the cell does, in plain Keras operations."""
        quantizer = quantizers.plain(self.input_quantizer)
        return inputs if quantizer is None else quantizer(as_floats(inputs, self.compute_dtype))


@keras.saving.register_keras_serializable(package="keras_mpt")
class MPTSimpleRNN(MPTRecurrent, keras.layers.SimpleRNN):
    """`keras.layers.SimpleRNN` with two masked, frozen random kernels. Masks are computed once per call.

    Args:
        *args, **kwargs: Arguments of the Keras layer (`use_bias` defaults to False) and of `MPTLayer`. `seed`
            seeds dropout as well.

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
    """`keras.layers.LSTM` with two masked, frozen random kernels. Masks are computed once per call.

    Args:
        *args, **kwargs: Arguments of the Keras layer (`use_bias` defaults to False) and of `MPTLayer`. `seed`
            seeds dropout as well.

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
    """`keras.layers.GRU` with two masked, frozen random kernels. Masks are computed once per call.

    Args:
        *args, **kwargs: Arguments of the Keras layer (`use_bias` defaults to False) and of `MPTLayer`. `seed`
            seeds dropout as well.

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
