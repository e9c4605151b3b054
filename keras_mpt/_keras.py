"""Everything that needs `keras.src` or underscored names of Keras. No other file uses them."""

import collections
import contextlib

import keras
from keras.src.backend.common import global_state


def functional_graph(layer):
    """Return the graph of a functional or built Sequential model; None for other layers."""
    graph = getattr(layer, "_functional", layer)
    return graph if isinstance(graph, keras.Function) else None


def run_graph(graph, inputs, call):
    """Run a graph on values of any kind; `call(operation, *args, **kwargs)` returns the outputs of each call."""
    return graph._run_through_graph(inputs, operation_fn=lambda operation: operation, call_fn=call)


def call_of(tensor):
    """Return the operation whose output a symbolic tensor is, and the symbolic inputs of that call."""
    operation, node, _ = tensor._keras_history
    return operation, operation._inbound_nodes[node].input_tensors


def inputs_of_calls(layer):
    """Return the lists of symbolic inputs of a layer's calls, in order."""
    return [list(node.input_tensors) for node in layer._inbound_nodes]


def symbolic_tensors(graph):
    """Return the symbolic outputs of all calls in a graph, including its inputs."""
    calls = [node for nodes in graph._nodes_by_depth.values() for node in nodes]
    return [tensor for node in calls for tensor in node.output_tensors]


@contextlib.contextmanager
def without_values(on_variable, on_name):
    """Create variables without values and memory, and leave the numbers of unnamed objects as they were.

    Args:
        on_variable: Called with each new variable, before any other use; may raise.
        on_name: Called when an unnamed object, such as a symbolic tensor, gets a name; may raise.
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
    """List of variables without values that reports each new one."""

    def __init__(self, watch):
        super().__init__()
        self.watch = watch

    def append(self, variable):
        self.watch(variable)
        super().append(variable)


class _Numbers(collections.defaultdict):
    """Numbers of named objects by kind; reports each new one."""

    def __init__(self, watch, numbers):
        super().__init__(int, numbers)
        self.watch = watch

    def __setitem__(self, name, number):
        self.watch()
        super().__setitem__(name, number)


def layers_inside(layer, recursive=True):
    """Return the layers inside a layer, outer ones first; without `recursive`, only the direct ones."""
    return list(layer._flatten_layers(include_self=False, recursive=recursive))


def calls_around(operation):
    """Return the operations before and after an operation in the graph."""
    before = [tensor._keras_history.operation for node in operation._inbound_nodes for tensor in node.input_tensors]
    return before + [node.operation for node in operation._outbound_nodes]


def call_under_way():
    """Return an object that identifies the current call of a model in this thread; None outside of a call.

    It is a `StatelessScope` (a training step on JAX) or the context of the outermost layer's call.
    """
    scope = global_state.get_global_attribute("stateless_scope")
    return scope or global_state.get_global_attribute("current_call_ctx")


def outermost_layer():
    """Return the outermost layer that is being called in this thread; None outside of a call."""
    context = global_state.get_global_attribute("current_call_ctx")
    return context and context.entry_layer


def in_stateless_scope():
    """Return whether a `StatelessScope` is open in this thread."""
    return global_state.get_global_attribute("stateless_scope") is not None


def gets_state():
    """Return whether the code that runs in this thread gets the variables as its state, as compiled code of JAX."""
    return in_stateless_scope() and global_state.get_global_attribute("symbolic_scope") is None


def is_replaced(variable):
    """Return whether a `StatelessScope` replaces the value of a variable."""
    scope = global_state.get_global_attribute("stateless_scope")
    return scope is not None and scope.get_current_value(variable) is not None


# Methods of Keras variables that TensorFlow calls to save, restore and export them.
METHODS_OF_TENSORFLOW = ["_serialize_to_tensors", "_restore_from_tensors", "_copy_trackable_to_cpu"]
METHODS_OF_TENSORFLOW += ["_export_to_saved_model_graph", "_write_object_proto"]


def track_in_backend(layer, name, variable):
    """Make TensorFlow save and export a variable with a layer that does not list it; None: end this.

    Other backends save the variables in Keras' lists only.
    """
    if keras.backend.backend() != "tensorflow":
        return
    if variable is None:
        layer._delete_tracking(name)
    else:
        locked = layer._tracker.locked
        layer._tracker.unlock()
        layer._track_trackable(variable, name, overwrite=True)  # Keras tracks it as well
        layer._tracker.untrack(variable)
        if locked:
            layer._tracker.lock()


def is_training():
    """Return whether the current call in this thread is a training step."""
    context = global_state.get_global_attribute("current_call_ctx")
    return bool(context and context.get_value("training"))


def untrack(layer, variable):
    """Remove a variable from the lists of a layer."""
    layer._untrack_variable(variable)


def is_restored(model):
    """Return whether `BackupAndRestore` has restored the current training of a model."""
    return getattr(model, "_initial_epoch", None) is not None


def own_weights(layer):
    """Return the weights of a layer without those of inner layers."""
    return [*layer._trainable_variables, *layer._non_trainable_variables]


class NotesCalls:
    """Mixin that calls `_note_call` when the call of an outer layer begins, including symbolic calls.

    Keras then clears the losses of all inner layers, which is the only sign that a nested model is called.
    """

    def _clear_losses(self):
        super()._clear_losses()
        self._note_call()


def copied_operation(operation):
    """Return a copy, without calls, of an operation that is not a layer."""
    twin = object.__new__(type(operation))  # `copy` would need the class to be registered
    vars(twin).update(vars(operation))
    twin._inbound_nodes, twin._outbound_nodes = [], []
    return twin


def forget_last_call(operation):
    """Remove the last symbolic call of an operation."""
    operation._inbound_nodes.pop()


def has_keras_mask(tensor):
    """Return whether a tensor has a mask, such as `Masking` makes."""
    return getattr(tensor, "_keras_mask", None) is not None


def let_train(layer):
    """Let a layer be trainable, and leave its variables and the layers inside as they are."""
    layer._trainable = True


def replace_layer(layer, attribute, part):
    """Replace a layer inside another layer."""
    layer._tracker.unlock()
    layer._tracker.untrack(getattr(layer, attribute))
    setattr(layer, attribute, part)


def put_into_call(key, value):
    """Store a value until the current call ends."""
    if (call := call_under_way()) is not None:
        vars(call).setdefault("kept_by_keras_mpt", {})[key] = value


def kept_in_call(key, remove=False):
    """Return the value that `put_into_call` stored in the current call, or None."""
    kept = getattr(call_under_way(), "kept_by_keras_mpt", {})
    return kept.pop(key, None) if remove else kept.get(key)
