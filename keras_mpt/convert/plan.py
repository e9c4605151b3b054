"""Rewrite a model as a plain float32 graph with cuts at the signs, the start of every conversion."""

import dataclasses
import functools

import keras
from keras import ops

from keras_mpt import quantizers
from keras_mpt._keras import functional_graph, layers_inside
from keras_mpt.convert.kernels import Kernel, Quantize, apart, call_plain, for_runtimes, leads_of, plain_name
from keras_mpt.layers import MPTEmbedding, MPTLayer
from keras_mpt.layers.twins import PlainTwin
from keras_mpt.models.copies import first_input, inside_wrapper
from keras_mpt.models.functional import all_steps, check_opened
from keras_mpt.models.paths import check_functional, check_not_quantized
from keras_mpt.models.plain import bake, plain_twin, prepared_call, quantizes
from keras_mpt.models.rewrite import functional, rewrite
from keras_mpt.models.summaries import call_shapes


@dataclasses.dataclass(frozen=True)
class Cut:
    """A place where a model takes signs, with an Identity in front.

    Attributes:
        name: Path of the layer that takes the signs.
        before, after: Symbolic input and output of the Identity.
    """

    name: str
    before: keras.KerasTensor
    after: keras.KerasTensor


@dataclasses.dataclass(frozen=True)
class Graph:
    """A model of plain float32 layers and operations, without nested models.

    Attributes:
        model: A functional `keras.Model`. Its float inputs are float32, others keep their dtype.
        kernels: List of a `Kernel` for each kernel of the MPT layers, in the order of the model.
        inputs, outputs: Unique names of the inputs and outputs, of letters, digits and underscores.
        cuts: List of a `Cut` for each tensor whose signs are taken.
        leads: Symbolic tensors of `kernels.leads_of`: where one is almost zero, rounding decides on an index.
    """

    model: keras.Model
    kernels: list
    inputs: list
    outputs: list
    cuts: list
    leads: list = dataclasses.field(default_factory=list)

    def whole(self):
        """Return the graph with the tensors before all cuts, and the leads, as further outputs."""
        befores = [*(cut.before for cut in self.cuts), *self.leads]
        model = keras.Model(self.model.inputs, apart([*self.model.outputs, *befores]), name=self.model.name)
        return dataclasses.replace(self, model=model, outputs=_with(self.outputs, "before", befores), cuts=[])

    def pieces(self):
        """Return the graph of the pieces between cuts: tensors before are outputs, those after are inputs."""
        befores, afters = [cut.before for cut in self.cuts], [cut.after for cut in self.cuts]
        model = keras.Model(
            [*self.model.inputs, *afters], apart([*self.model.outputs, *befores]), name=f"{self.model.name}_pieces"
        )
        inputs, outputs = _with(self.inputs, "after", afters), _with(self.outputs, "before", befores)
        return dataclasses.replace(self, model=model, inputs=inputs, outputs=outputs, cuts=[])


class Plan:
    """A model to convert, and the format of each of its kernels.

    Args:
        model: A built functional or Sequential model.
        preprocess: A `Normalization` of pixels at the start of the graphs, or None.

    Attributes:
        model, preprocess: See above.
        batch: Batch size of the model; None if it takes any, as Sequential models do.
        kernels: List of a `Kernel` for each kernel of the MPT layers, in the order of the model.
        layers: List of `(layer, calls)` for each layer with matrices, in the same order; for calls see `call_shapes`.
        cuts: Number of tensors whose signs are taken.
        reference: The whole `Graph` in floats, for comparison.

    Raises:
        ValueError: `model` is not a built functional or Sequential model of numbers, an output has no entry for each
            sample, Keras has quantized a layer, an MPT layer is inside a custom layer, or `preprocess` does not fit.
    """

    def __init__(self, model, preprocess=None):
        check_functional(model, "converted")
        check_not_quantized(model, "converted")
        _check_inputs(model)
        _check_outputs(model)
        if preprocess is not None:
            preprocess.check(model)
        self.model, self.preprocess = model, preprocess
        self.batch = next((x.shape[0] for x in model.inputs if x.shape[0] is not None and not _any_batch(model)), None)
        self._kernels, self.layers = {}, []
        graph = self.graph(plain=True)
        self.cuts, self.reference = len(graph.cuts), graph.whole()

    @property
    def kernels(self):
        return list(self._kernels.values())

    def graph(self, batch=None, plain=False):
        """Return the model as a `Graph`.

        Args:
            batch: Batch size for a model that has none; None: any.
            plain: Whether to ignore formats and use plain float layers.
        """
        cuts, leads, copies, done, layers = {}, [], {}, {}, {}
        cut = functools.partial(_cut, cuts)

        def note(layer, kernels, args, kwargs, outputs):
            _, calls = layers.setdefault(id(layer), (layer, []))
            calls.append(call_shapes(layer, args, kwargs, outputs))
            for kernel in kernels:
                kernel.calls = len(calls)

        def mpt(path, layer, x):
            (kernel,) = self._kernels_of(path, layer)
            if (id(layer), id(x)) not in done:  # a layer has one output for a tensor
                floats = x if x.dtype == "float32" else _cast(x)
                floats = cut(path, floats) if kernel.takes_signs else floats
                done[id(layer), id(x)] = (call_plain if plain else kernel.format.call)(kernel, floats)
                note(layer, [kernel], (x,), {}, done[id(layer), id(x)])
            return done[id(layer), id(x)]

        def quantize(quantizer):
            return lambda x: Quantize(quantizer)(cut(x.name, x) if quantizers.is_sign(quantizer) else x)

        def other(path, layer, args, kwargs):
            """Call any layer except MPT layers with a single kernel; kernels inside it have no format of their own."""
            kernels = self._kernels_of(path, layer)
            if id(layer) not in copies:
                copies[id(layer)] = plain_twin(layer, lambda inner: inner.plain(dtype="float32"), dtype="float32")
                copies[id(layer)].name = plain_name(path)
            outputs = copies[id(layer)](*args, **kwargs)
            bake(layer, copies[id(layer)])
            if any(len(weight.shape) > 1 for weight in layer.weights):
                note(layer, kernels, args, kwargs, outputs)
            return outputs

        def step(path, operation, args, kwargs):
            alone = isinstance(operation, MPTLayer) and len(operation.subnets) == 1
            if alone and not isinstance(operation, MPTEmbedding):
                return mpt(path, operation, first_input(args, kwargs))
            if not isinstance(operation, keras.layers.Layer):
                leads.extend(leads_of(operation, first_input(args, kwargs)) if plain else ())
                return for_runtimes(operation)(*args, **kwargs)
            if (outputs := all_steps(path, operation, args, kwargs, step)) is not None:
                return outputs
            if quantizes(operation):
                x, name = first_input(args, kwargs), plain_name(path)
                x = cut(path, x) if quantizers.is_sign(operation.activation) else x
                return Quantize(operation.activation, name=name)(x)
            check_opened(operation, "converted")
            return other(path, operation, *prepared_call(operation, args, kwargs, quantize))

        inputs = [self._input(x, batch) for x in self.model.inputs]
        values = inputs if self.preprocess is None else [self.preprocess(inputs[0])]

        def make(model, _, ends):
            return functional(model, inputs, apart(ends, inputs))

        model = rewrite(self.model, step, inputs=values, dissolve=True, make=make)
        model.name = plain_name(model.name)
        self.layers = list(layers.values())
        names = _names(x.name for x in self.model.inputs), _names(_output_names(self.model))
        return Graph(model, self.kernels, *names, list(cuts.values()), leads)

    def _kernels_of(self, path, layer):
        """Return the kernels of a layer, or of the layers in a wrapper of Keras."""
        if not isinstance(layer, PlainTwin):
            return [kernel for inner in inside_wrapper(layer) for kernel in self._kernels_of(path, inner)]
        return [self._kernels.setdefault(subnet.number, Kernel(subnet, path)) for subnet in layer.subnets]

    def _input(self, x, batch):
        floats = "float32" if self.preprocess is None else "uint8"
        dtype = floats if keras.backend.is_float_dtype(x.dtype) else x.dtype
        batch = batch if self.batch is None else x.shape[0] or batch
        return keras.Input(batch_shape=(batch, *x.shape[1:]), dtype=dtype, name=x.name)


def _any_batch(model):
    """Return whether the batch size of a model means nothing: Sequential models take that of their first data."""
    return isinstance(model, keras.Sequential) and not any(getattr(x, "stateful", False) for x in layers_inside(model))


def _check_inputs(model):
    for x in model.inputs:
        if x.dtype == "string":
            raise ValueError(
                "`model` must take numbers to be converted: look words up before the model. Received: input "
                f"{x.name!r} of strings"
            )
        if x.sparse:
            raise ValueError(f"`model` must take dense tensors to be converted. Received: sparse input {x.name!r}")


def _check_outputs(model):
    sizes = {x.shape[0] for x in model.inputs}
    for name, x in zip(_output_names(model), model.outputs, strict=True):
        if not x.shape or None in sizes and x.shape[0] not in sizes:
            raise ValueError(
                "`model` must have outputs with an entry for each sample to be converted: an operation such as "
                "`keras.ops.argmax` needs `axis=-1`, or it takes all samples together. Received: output "
                f"{name!r} of shape {tuple(x.shape)}"
            )


def _cast(x):
    """Cast a symbolic tensor to float32; TensorFlow Lite cannot compare a direct cast of booleans."""
    return ops.cast(ops.cast(x, "int32") if x.dtype == "bool" else x, "float32")


def _output_names(model):
    graph = functional_graph(model)
    named = isinstance(graph.output, dict) and len(graph.output) == len(graph.outputs)
    return sorted(graph.output) if named else graph.output_names


def _cut(cuts, path, x):
    """Return what continues after a cut at `x`, of which there is one for each tensor."""
    if id(x) not in cuts:
        before = keras.layers.Identity(dtype="float32")(x)  # an input of the model cannot be an output
        cuts[id(x)] = Cut(path, before, keras.layers.Identity(dtype="float32")(before))
    return cuts[id(x)].after


def _names(names):
    """Return unique names as `plain_name` makes them."""
    found = []
    for name in names:
        name = plain = plain_name(name)
        while name in found:
            name = f"{plain}_{len(found)}"
        found.append(name)
    return found


def _with(names, prefix, tensors):
    return _names([*names, *(f"{prefix}_{i}" for i in range(len(tensors)))])
