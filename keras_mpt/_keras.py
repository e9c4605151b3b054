"""The only file that touches `keras.src` or names of Keras that begin with an underscore: what has no public way."""

import collections
import contextlib

import keras
from keras.src.backend.common import global_state


def call_of(tensor):
    """Return the operation that made a symbolic tensor, and the symbolic tensors that it got."""
    operation, node, _ = tensor._keras_history
    return operation, operation._inbound_nodes[node].input_tensors


def inputs_of_calls(layer):
    """Return the lists of symbolic tensors that a layer was called with, in the order of the calls."""
    return [list(node.input_tensors) for node in layer._inbound_nodes]


def symbolic_tensors(graph):
    """Return the symbolic tensors that the calls in a graph made, inputs included."""
    calls = [node for nodes in graph._nodes_by_depth.values() for node in nodes]
    return [tensor for node in calls for tensor in node.output_tensors]


@contextlib.contextmanager
def without_values(on_variable, on_name):
    """Let variables be made without values and memory, and leave no trace in the numbers of unnamed objects.

    Args:
        on_variable: Called with each variable, before it is known to anybody; may raise.
        on_name: Called each time an object without a name gets one, as each symbolic tensor does; may raise.
    """
    waiting = global_state.get_global_attribute("uninitialized_variables")
    numbers = global_state.get_global_attribute("object_name_uids")
    global_state.set_global_attribute("uninitialized_variables", _Watched(on_variable))
    global_state.set_global_attribute("object_name_uids", _Numbers(on_name, numbers or {}))
    on_torch = keras.backend.backend() == "torch"
    try:
        with (
            keras.StatelessScope(initialize_variables=False),
            keras.device("meta") if on_torch else contextlib.nullcontext(),
        ):
            yield
    finally:
        global_state.set_global_attribute("uninitialized_variables", waiting)
        global_state.set_global_attribute("object_name_uids", numbers)


class _Watched(list):
    """Variables that wait for a value."""

    def __init__(self, watch):
        super().__init__()
        self.watch = watch

    def append(self, variable):
        self.watch(variable)
        super().append(variable)


class _Numbers(collections.defaultdict):
    """How many objects of each kind got a name."""

    def __init__(self, watch, numbers):
        super().__init__(int, numbers)
        self.watch = watch

    def __setitem__(self, name, number):
        self.watch()
        super().__setitem__(name, number)
