"""From a model to plain data and back, through a list of what may be made: a ticket is data, not code.

Keras' own deserialization finds classes by the names in the file, some of which run what else is in it, or open other
files. Here every object of a config must be on the list before Keras sees it, and the sizes of all variables are known
before memory is taken for one.
"""

import contextlib
import inspect
import math
import random

import keras
from keras.src.backend.common import global_state  # no public way to drop variables that wait for a value

from keras_mpt import initializers, layers, masks, quantizers
from keras_mpt.models.paths import check_functional
from keras_mpt.quantizers import larq_objects

_OWN_MODULES = (initializers, layers, masks, quantizers)

_LAYERS = """
InputLayer Dense EinsumDense Embedding Identity
Conv1D Conv2D Conv3D Conv1DTranspose Conv2DTranspose Conv3DTranspose
DepthwiseConv1D DepthwiseConv2D SeparableConv1D SeparableConv2D
AveragePooling1D AveragePooling2D AveragePooling3D MaxPooling1D MaxPooling2D MaxPooling3D
GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D
GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D
AdaptiveAveragePooling1D AdaptiveAveragePooling2D AdaptiveAveragePooling3D
AdaptiveMaxPooling1D AdaptiveMaxPooling2D AdaptiveMaxPooling3D
BatchNormalization GroupNormalization LayerNormalization RMSNormalization UnitNormalization Normalization
Activation ReLU LeakyReLU PReLU ELU Softmax
Add Average Concatenate Dot Maximum Minimum Multiply Subtract
Flatten Reshape Permute RepeatVector Cropping1D Cropping2D Cropping3D
ZeroPadding1D ZeroPadding2D ZeroPadding3D UpSampling1D UpSampling2D UpSampling3D
Dropout AlphaDropout SpatialDropout1D SpatialDropout2D SpatialDropout3D GaussianDropout GaussianNoise
ActivityRegularization Masking Rescaling Resizing CenterCrop RandomCrop RandomFlip RandomRotation RandomTranslation
RandomZoom RandomContrast RandomBrightness TimeDistributed Bidirectional
SimpleRNN SimpleRNNCell GRU GRUCell LSTM LSTMCell RNN StackedRNNCells
MultiHeadAttention GroupQueryAttention Attention AdditiveAttention
"""

# Operations of keras.ops on tensors of a functional model: arithmetic, comparisons, shapes; activations, pooling.
_OPERATIONS = """
Absolute Add BroadcastTo Clip Concatenate Cos Divide Einsum Equal Exp ExpandDims Flip Floor GetItem Greater
GreaterEqual Less LessEqual Log Matmul Max Maximum Mean Min Minimum Mod Moveaxis Multiply Negative NotEqual Pad Power
Reciprocal Repeat Reshape Round Sign Sin Split Sqrt Square Squeeze Stack Std Subtract Sum Swapaxes Tanh Tile Transpose
TrueDivide Var Where
"""
_ACTIVATIONS = """
AveragePool Celu DepthToSpace Elu Gelu HardSigmoid HardSilu HardTanh LeakyRelu LogSigmoid LogSoftmax MaxPool Normalize
Relu Relu6 Selu Sigmoid Silu Softmax Softplus Softsign SpaceToDepth
"""

_ALLOWED = {
    "keras": {"DTypePolicy", "Sequential"},
    "keras.src.models.functional": {"Functional"},
    "keras.layers": set(_LAYERS.split()),
    "keras.src.applications.convnext": {"LayerScale", "StochasticDepth"},
    "keras.src.applications.inception_resnet_v2": {"CustomScaleLayer"},
    "keras.src.ops.numpy": set(_OPERATIONS.split()),
    "keras.src.ops.nn": set(_ACTIVATIONS.split()),
    "keras.src.ops.core": {"Cast", "StopGradient"},
    "keras.src.activations.activations": {"ReLU"},
    "keras.initializers": {
        *("Constant", "Zeros", "Ones", "Identity", "Orthogonal", "RandomNormal", "RandomUniform", "TruncatedNormal"),
        *("VarianceScaling", "GlorotNormal", "GlorotUniform", "HeNormal", "HeUniform", "LecunNormal", "LecunUniform"),
    },
    "keras.regularizers": {"L1", "L2", "L1L2", "OrthogonalRegularizer"},
    "keras.constraints": {"MaxNorm", "MinMaxNorm", "NonNeg", "UnitNorm"},
}
# Arguments that classes of Keras got after 3.12, and the values that change nothing: where these are not known, files
# that have them can be read.
_SCALED = "VarianceScaling GlorotNormal GlorotUniform HeNormal HeUniform LecunNormal LecunUniform".split()
_ADDED = {
    "BatchNormalization": {"renorm": False, "renorm_clipping": None, "renorm_momentum": 0.99},
    **dict.fromkeys(("Dense", "EinsumDense", "Embedding"), {"quantization_config": None}),
    **dict.fromkeys(("MultiHeadAttention", "GroupQueryAttention"), {"use_gate": False, "sliding_window": None}),
    **dict.fromkeys(_SCALED, {"input_axes": None, "output_axes": None}),
}
_PLAIN = {"__keras_tensor__", "__slice__", "__ellipsis__"}  # Keras' names for what JSON lacks
_KEYS = {"module", "class_name", "config", "registered_name"}
_MORE_KEYS = {"build_config", "name", "inbound_nodes"}


def describe(model, custom_classes=()):
    """Return the JSON-able config from which `build` makes the model's layers again.

    Raises:
        ValueError: The model is subclassed, or holds what is not on the list.
    """
    check_functional(model, "a ticket")
    config = plain(keras.saving.serialize_keras_object(model))
    check(config, custom_classes)
    return config


def check(config, custom_classes=()):
    """Raise ValueError if a config asks for anything but what is on the list.

    Args:
        config: JSON data.
        custom_classes: Further classes to allow, registered with `keras.saving.register_keras_serializable`.
    """
    own = [cls for part in _OWN_MODULES for cls in vars(part).values() if isinstance(cls, type)]
    _check(config, {keras.saving.get_registered_name(cls): cls for cls in [*own, *custom_classes]})


def _check(config, registered):
    if isinstance(config, dict):
        if "class_name" in config or "module" in config:  # larq's objects are known by their module
            _check_object(config, registered)
        for value in config.values():
            _check(value, registered)
    elif isinstance(config, list):
        for value in config:
            _check(value, registered)
    elif isinstance(config, str) and config not in registered and keras.saving.get_registered_object(config):
        raise _not_allowed(config)  # where Keras expects an initializer, say, the name is enough


def _check_object(config, registered):
    name, module, package = (config.get(key) for key in ("class_name", "module", "registered_name"))
    if name in list(_PLAIN):
        allowed = set(config) == {"class_name", "config"}
    elif isinstance(package, str) and ">" in package:
        cls = registered.get(package)
        allowed = cls is not None and cls.__name__ == name and keras.saving.get_registered_object(package) is cls
    else:
        allowed = name in list(_ALLOWED.get(str(module), ())) and package in (None, name)
    if not allowed or not (name in _PLAIN or _KEYS <= set(config) <= _KEYS | _MORE_KEYS):
        raise _not_allowed(package or f"{module}.{name}", module)


def _not_allowed(received, module=None):
    others = "others must be among `custom_classes`"
    if module == "keras.layers":
        others = "this one is not among those (docs/ticket-format.md lists them): apply it before the model"
    if received in ("None.__numpy__", "None.__tensor__"):
        others = "of an array, such as a mean to subtract, make a layer with weights"
    if str(module).startswith("keras.src."):
        others = "use such a layer instead of this operation"
    return ValueError(f"A ticket holds layers of keras_mpt and ordinary ones of Keras; {others}. Received: {received}")


def build(config, check_shapes, most, custom_classes=()):
    """Return the model of a config, its variables as their initializers make them.

    Args:
        config: What `describe` returned.
        check_shapes: Called with the model while its variables have shapes but no values and use no memory; raises if
            these are not as expected.
        most: How many entries all variables together may have, so that none is used in between that is larger.
        custom_classes: See `check`.

    Raises:
        ValueError: The config asks for something that is not on the list.
        Exception: Whatever Keras raises for a config that makes no sense.
    """
    check(config, custom_classes)
    config = _known(config)
    measured = _without_constants(config)
    if measured != config:  # counted before any of them is made
        with without_memory(most):
            keras.saving.deserialize_keras_object(_with_zeros(measured))
    with without_memory(most):
        check_shapes(keras.saving.deserialize_keras_object(_with_zeros(config)))
    state = random.getstate()  # initializers without a seed draw one here
    try:
        return keras.saving.deserialize_keras_object(config)
    finally:
        random.setstate(state)


def _known(config):
    """Return the config without what this version of Keras does not know and need not know."""
    if isinstance(config, list):
        return [_known(value) for value in config]
    if not isinstance(config, dict):
        return config
    config = {key: _known(value) for key, value in config.items()}
    added, module = _ADDED.get(config.get("class_name"), {}), config.get("module")
    if added and module in ("keras.layers", "keras.initializers"):
        cls = getattr(getattr(keras, module.split(".")[1]), config["class_name"])
        known = inspect.signature(cls.__init__).parameters
        unknown = {name: value for name, value in added.items() if name not in known}
        arguments = config["config"].items()
        config["config"] = {k: v for k, v in arguments if k not in unknown or v != unknown[k]}
    return config


class _Waiting(list):
    """Variables that wait for a value, with so many entries in all at most."""

    def __init__(self, most):
        super().__init__()
        self.left = most

    def append(self, variable):
        self.left -= math.prod(variable.shape)
        if self.left < 0:
            raise ValueError(f"the variables are larger than the file says, {variable.path} among them")
        super().append(variable)


@contextlib.contextmanager
def without_memory(most):
    """Let variables be created without values.

    Args:
        most: How many entries all of them together may have.

    Raises:
        ValueError: They have more.
    """
    waiting = global_state.get_global_attribute("uninitialized_variables")
    global_state.set_global_attribute("uninitialized_variables", _Waiting(most))
    on_torch = keras.backend.backend() == "torch"
    try:
        with (
            keras.StatelessScope(initialize_variables=False),
            keras.device("meta") if on_torch else contextlib.nullcontext(),
        ):
            yield
    finally:
        global_state.set_global_attribute("uninitialized_variables", waiting)


def _with_zeros(config):
    """Return the config with initializers that compute nothing."""
    if isinstance(config, dict):
        return {
            key: "zeros" if key.endswith("_initializer") and value is not None else _with_zeros(value)
            for key, value in config.items()
        }
    return [_with_zeros(value) for value in config] if isinstance(config, list) else config


def _without_constants(config):
    """Return the config with variables, whose sizes are counted, where a layer would spread numbers to its input."""
    if isinstance(config, dict):
        config = {key: _without_constants(value) for key, value in config.items()}
        if config.get("class_name") == "Normalization":
            config["config"] = {**config["config"], "mean": None, "variance": None}
        return config
    return [_without_constants(value) for value in config] if isinstance(config, list) else config


def plain(config):
    """Return the config as JSON gives it back, without the optimizer, with our quantizers instead of larq's."""
    if isinstance(config, dict):
        if larq_objects.is_larq_config(config):
            ours = larq_objects.to_ours(larq_objects.deserialize(config))
            return plain(keras.saving.serialize_keras_object(ours))
        return {key: plain(value) for key, value in config.items() if key != "compile_config"}
    return [plain(value) for value in config] if isinstance(config, (list, tuple)) else config
