"""The only file that touches `keras.src` or names of Keras that begin with an underscore: what has no public way."""

import collections
import contextlib
import copy

import keras
from keras.src.backend.common import global_state


def functional_graph(layer):
    """Return the graph of a functional or built Sequential model, None for others."""
    graph = getattr(layer, "_functional", layer)
    return graph if isinstance(graph, keras.Function) else None


def run_graph(graph, inputs, call):
    """Return the outputs of a graph on any values; `call(operation, *args, **kwargs)` gives those of each call."""
    return graph._run_through_graph(inputs, operation_fn=lambda operation: operation, call_fn=call)


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


def layers_inside(layer, recursive=True):
    """Return the layers inside a layer, an outer one before those inside it; without `recursive` the outer ones."""
    return list(layer._flatten_layers(include_self=False, recursive=recursive))


def calls_around(operation):
    """Return the operations that made the symbolic inputs of an operation, and those that got its outputs."""
    before = [tensor._keras_history.operation for node in operation._inbound_nodes for tensor in node.input_tensors]
    return before + [node.operation for node in operation._outbound_nodes]


def call_under_way():
    """Return an object that stands for the call of a model that is under way in this thread, None outside of one.

    That is a `StatelessScope` (the training step of JAX), or else the context of the outermost layer's call.
    """
    scope = global_state.get_global_attribute("stateless_scope")
    return scope or global_state.get_global_attribute("current_call_ctx")


def outermost_layer():
    """Return the layer whose call is the outermost one under way in this thread, None outside of a call."""
    context = global_state.get_global_attribute("current_call_ctx")
    return context and context.entry_layer


def in_stateless_scope():
    """Return whether a `StatelessScope` is open in this thread."""
    return global_state.get_global_attribute("stateless_scope") is not None


def is_replaced(variable):
    """Return whether a `StatelessScope` gives a variable another value."""
    scope = global_state.get_global_attribute("stateless_scope")
    return scope is not None and scope.get_current_value(variable) is not None


# Of variables of Keras: what TensorFlow calls to save them, to restore them and to export them.
METHODS_OF_TENSORFLOW = ["_serialize_to_tensors", "_restore_from_tensors", "_copy_trackable_to_cpu"]
METHODS_OF_TENSORFLOW += ["_export_to_saved_model_graph", "_write_object_proto"]


def track_in_backend(layer, name, variable):
    """Let TensorFlow save and export a variable with a layer, although the layer does not list it; None: not any more.

    The other backends save by Keras' lists only.
    """
    if keras.backend.backend() != "tensorflow":
        return
    if variable is None:
        layer._delete_tracking(name)
    else:
        locked = layer._tracker.locked
        layer._tracker.unlock()
        layer._track_trackable(variable, name, overwrite=True)  # which Keras notes
        layer._tracker.untrack(variable)
        if locked:
            layer._tracker.lock()


def is_training():
    """Return whether the call under way in this thread trains."""
    context = global_state.get_global_attribute("current_call_ctx")
    return bool(context and context.get_value("training"))


def untrack(layer, variable):
    """Let a layer forget a variable."""
    layer._untrack_variable(variable)


def is_restored(model):
    """Return whether `BackupAndRestore` has restored the training of a model that is under way."""
    return getattr(model, "_initial_epoch", None) is not None


def own_variables(layer):
    """Return the variables that a layer itself has made, not those of a layer inside or of random generators."""
    return [*layer._trainable_variables, *layer._non_trainable_variables]


class NotesCalls:
    """Mixin of layers whose `_note_call` is called whenever the call of a layer around them begins, a symbolic one too.

    Keras clears the losses of all layers inside then; that a nested model was called is seen nowhere else.
    """

    def _clear_losses(self):
        super()._clear_losses()
        self._note_call()


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


def replace_layer(layer, attribute, part):
    """Put another layer in the place of one inside a layer."""
    layer._tracker.unlock()
    layer._tracker.untrack(getattr(layer, attribute))
    setattr(layer, attribute, part)


def put_into_call(key, value):
    """Keep a value while the call under way lasts."""
    if (call := call_under_way()) is not None:
        vars(call).setdefault("kept_by_keras_mpt", {})[key] = value


def kept_in_call(key, remove=False):
    """Return what `put_into_call` has kept in the call under way, None if nothing."""
    kept = getattr(call_under_way(), "kept_by_keras_mpt", {})
    return kept.pop(key, None) if remove else kept.get(key)
