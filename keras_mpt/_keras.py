"""The only file that touches `keras.src` or names of Keras that begin with an underscore: what has no public way."""

import copy

import keras


def functional_graph(layer):
    """Return the graph of a functional or built Sequential model, None for others."""
    graph = getattr(layer, "_functional", layer)
    return graph if isinstance(graph, keras.Function) else None


def run_graph(graph, inputs, call):
    """Return the outputs of a graph on any values; `call(operation, *args, **kwargs)` gives those of each call."""
    return graph._run_through_graph(inputs, operation_fn=lambda operation: operation, call_fn=call)


def layers_inside(layer, recursive=True):
    """Return the layers inside a layer, an outer one before those inside it; without `recursive` the outer ones."""
    return list(layer._flatten_layers(include_self=False, recursive=recursive))


def call_of(tensor):
    """Return the operation that made a symbolic tensor, and the symbolic tensors that it got."""
    operation, node, _ = tensor._keras_history
    return operation, operation._inbound_nodes[node].input_tensors


def copied_operation(operation):
    """Return a copy of an operation that is no layer, with no calls yet."""
    twin = copy.copy(operation)
    twin._inbound_nodes, twin._outbound_nodes = [], []
    return twin


def forget_last_call(operation):
    """Take back the last symbolic call of an operation."""
    operation._inbound_nodes.pop()


def has_keras_mask(tensor):
    """Return whether a tensor has a mask, such as `Masking` makes."""
    return getattr(tensor, "_keras_mask", None) is not None
