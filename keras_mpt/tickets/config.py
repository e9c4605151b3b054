"""Configs of models and back, restricted by an allow-list: a ticket is data, not code.

Keras' own deserialization finds classes by the names in a file. Some of these classes run code from the file, or open
other files. Here, every object of a config must be on the list before Keras sees it, and the sizes of all variables are
known before memory is allocated.
"""

import contextlib
import inspect
import math
import random

import keras

from keras_mpt import _keras, initializers, layers, masks, quantizers
from keras_mpt._keras import functional_graph
from keras_mpt.arguments import printable
from keras_mpt.models.paths import check_functional, check_not_quantized, walk
from keras_mpt.quantizers import larq_objects
from keras_mpt.tickets.header import DTYPES, SETTINGS
from keras_mpt.tickets.limits import (
    DEEPEST,
    FREE_TENSORS,
    LARGEST_TENSOR,
    MOST_OF_ARGUMENTS,
    TENSORS_PER_OBJECT,
)

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
SimpleRNN SimpleRNNCell GRU GRUCell LSTM LSTMCell RNN StackedRNNCells ConvLSTM1D ConvLSTM2D ConvLSTM3D
SpectralNormalization
MultiHeadAttention GroupQueryAttention Attention AdditiveAttention
"""

# Operations of keras.ops that are pure functions of tensors and plain numbers: without those that call functions
# (Cond, Map, Scan), draw random numbers (ElasticTransform), or return shapes that depend on values (Nonzero, Unique,
# Bincount) or uninitialized memory (EmptyLike).
_NUMPY = """
Abs Absolute Add All AllClose Amax Amin Angle Any Append Arccos Arccosh Arcsin Arcsinh Arctan Arctan2 Arctanh Argmax
Argmin Argpartition Argsort Array ArraySplit Average BitwiseAnd BitwiseInvert BitwiseLeftShift BitwiseNot BitwiseOr
BitwiseRightShift BitwiseXor BroadcastTo Cbrt Ceil Clip Concatenate Conj Conjugate Copy Corrcoef Correlate Cos Cosh
CountNonzero Cross Cumprod Cumsum Deg2rad Diag Diagflat Diagonal Diff Digitize Divide DivideNoNan Dot Dsplit Dstack
Einsum Equal Exp Exp2 ExpandDims Expm1 Fabs Flip Fliplr Flipud Floor FloorDivide Fmax Fmin Fmod FullLike Gcd Geomspace
GetItem Greater GreaterEqual Heaviside Histogram Hsplit Hstack Hypot I0 Imag Inner IsIn Isclose Isfinite Isinf Isnan
Isneginf Isposinf Isreal Kron Lcm Ldexp LeftShift Less LessEqual Linspace Log Log10 Log1p Log2 Logaddexp Logaddexp2
LogicalAnd LogicalNot LogicalOr LogicalXor Logspace Matmul Max Maximum Mean Median Meshgrid Min Minimum Mod Moveaxis
Multiply NanToNum Nanargmax Nanargmin Nancumprod Nancumsum Nanmax Nanmean Nanmedian Nanmin Nanpercentile Nanprod
Nanquantile Nanstd Nansum Nanvar Ndim Negative Nextafter NotEqual OnesLike Outer Pad Percentile Power Prod Ptp Quantile
Rad2deg Ravel Real Reciprocal Repeat Reshape RightShift Roll Rot90 Round SearchSorted Select Sign Signbit Sin Sinc Sinh
Size Slogdet Sort Split Sqrt Square Squeeze Stack Std Subtract Sum Swapaxes Take TakeAlongAxis Tan Tanh Tensordot Tile
Trace Transpose Trapezoid Tril Triu TrueDivide Trunc UnravelIndex Vander Var Vdot View Vsplit Vstack Where ZerosLike
"""
_NN = """
AdaptiveAveragePool AdaptiveMaxPool AveragePool BatchNorm BinaryCrossentropy CTCLoss CategoricalCrossentropy Celu Conv
ConvTranspose DepthToSpace DepthwiseConv DotProductAttention Elu Fold Gelu Glu HardShrink HardSigmoid HardSilu HardTanh
LayerNorm LeakyRelu LogSigmoid LogSoftmax MaxPool Moments MultiHot Normalize OneHot PSNR Polar RMSNorm Relu Relu6 Selu
SeparableConv Sigmoid Silu SoftShrink Softmax Softplus Softsign SpaceToDepth SparseCategoricalCrossentropy SparsePlus
SparseSigmoid Sparsemax Squareplus TanhShrink Threshold Unfold
"""
_CORE = "Cast ConvertToTensor SaturateCast Scatter ScatterUpdate Slice SliceUpdate StopGradient Unstack"
_MATH = """
CDist Erf Erfc Erfinv ExtractSequences FFT FFT2 IFFT2 IRFFT ISTFT InTopK Logdet Logsumexp RFFT Rsqrt STFT SegmentMax
SegmentMin SegmentProd SegmentSum TopK ViewAsComplex ViewAsReal
"""
_IMAGE = """
AffineTransform CropImages ExtractPatches GaussianBlur HSVToRGB MapCoordinates PadImages PerspectiveTransform
RGBToGrayscale RGBToHSV Resize ScaleAndTranslate SobelEdges
"""
_LINALG = "Cholesky CholeskyInverse Det Eig Eigh Inv Lstsq LuFactor MatrixRank Norm Pinv Qr SVD Solve SolveTriangular"

_ALLOWED = {
    "keras": {"DTypePolicy", "Sequential"},
    "keras.src.models.functional": {"Functional"},
    "keras.layers": set(_LAYERS.split()),
    "keras.src.applications.convnext": {"LayerScale", "StochasticDepth"},
    "keras.src.applications.inception_resnet_v2": {"CustomScaleLayer"},
    "keras.src.ops.numpy": set(_NUMPY.split()),
    "keras.src.ops.nn": set(_NN.split()),
    "keras.src.ops.core": set(_CORE.split()),
    "keras.src.ops.math": set(_MATH.split()),
    "keras.src.ops.image": set(_IMAGE.split()),
    "keras.src.ops.linalg": set(_LINALG.split()),
    "keras.src.activations.activations": {"ReLU"},
    "keras.initializers": {
        *("Constant", "Zeros", "Ones", "Identity", "Orthogonal", "RandomNormal", "RandomUniform", "TruncatedNormal"),
        *("VarianceScaling", "GlorotNormal", "GlorotUniform", "HeNormal", "HeUniform", "LecunNormal", "LecunUniform"),
    },
    "keras.regularizers": {"L1", "L2", "L1L2", "OrthogonalRegularizer"},
    "keras.constraints": {"MaxNorm", "MinMaxNorm", "NonNeg", "UnitNorm"},
}
# Arguments added to classes of Keras after 3.12, and their neutral values: older versions read files with these.
_SCALED = "VarianceScaling GlorotNormal GlorotUniform HeNormal HeUniform LecunNormal LecunUniform".split()
_ADDED = {
    "BatchNormalization": {"renorm": False, "renorm_clipping": None, "renorm_momentum": 0.99},
    **dict.fromkeys(("Dense", "EinsumDense", "Embedding"), {"quantization_config": None}),
    **dict.fromkeys(("MultiHeadAttention", "GroupQueryAttention"), {"use_gate": False, "sliding_window": None}),
    **dict.fromkeys(_SCALED, {"input_axes": None, "output_axes": None}),
}
_PLAIN = {"__keras_tensor__", "__slice__", "__ellipsis__"}  # Keras' names for what JSON lacks
_CONSTANTS = {"__numpy__", "__tensor__"}
_KEYS = {"module", "class_name", "config", "registered_name"}
_MORE_KEYS = {"build_config", "name", "inbound_nodes"}
_PREPROCESSING = """
AugMix AutoContrast CategoryEncoding ContrastLimitedAdaptiveHistogramEqualization CutMix Discretization Equalization
HashedCrossing Hashing IntegerLookup MaxNumBoundingBoxes MelSpectrogram MixUp Pipeline RandAugment
RandomColorDegeneration RandomColorJitter RandomElasticTransform RandomErasing RandomGaussianBlur RandomGrayscale
RandomHue RandomInvert RandomPerspective RandomPosterization RandomSaturation RandomSharpness RandomShear
STFTSpectrogram Solarization StringLookup TextVectorization
""".split()
_REGISTER = "`@keras.saving.register_keras_serializable(package=...)`"


def describe(model, custom_objects=()):
    """Return the JSON-able config from which `build` creates the model's layers again.

    Args:
        model: A built functional or Sequential model.
        custom_objects: See `check`.

    Raises:
        ValueError: The model is subclassed, or has an object that is not on the list or a layer that Keras has
            quantized.
    """
    check_functional(model, "a ticket")
    check_not_quantized(model, "a ticket")
    config = plain(keras.saving.serialize_keras_object(model))
    check(config, custom_objects)
    return config


def global_settings():
    """Return Keras' global settings, which apply where a config says nothing, such as to inner layers."""
    return {
        "image_data_format": keras.config.image_data_format(),
        "floatx": keras.config.floatx(),
        "dtype_policy": keras.config.dtype_policy().name,
    }


def check(config, custom_objects=()):
    """Raise ValueError if a config has an object that is not on the list.

    Args:
        config: JSON data.
        custom_objects: Further classes, and functions used as activations, to allow. They must be registered with
            `keras.saving.register_keras_serializable`.
    """
    own = [cls for part in _OWN_MODULES for cls in vars(part).values() if isinstance(cls, type)]
    _check(config, {keras.saving.get_registered_name(cls): cls for cls in [*own, *custom_objects]})


def _check(config, registered, operands=False, depth=0):
    """Check JSON data. `operands`: whether it is an argument of an operation, which may be a constant."""
    if depth > DEEPEST:
        raise ValueError(f"the config is nested deeper than {DEEPEST} levels")
    if isinstance(config, dict):
        if operands and config.get("class_name") in list(_CONSTANTS):
            _check_constant(config)
            return
        if "class_name" in config or "module" in config:  # larq's objects are known by their module
            _check_object(config, registered)
        operation = str(config.get("module")).startswith("keras.src.ops.")
        for key, value in config.items():
            _check(value, registered, operands or operation and key == "inbound_nodes", depth + 1)
    elif isinstance(config, list):
        for value in config:
            _check(value, registered, operands, depth + 1)
    elif isinstance(config, str) and config not in registered and keras.saving.get_registered_object(config):
        raise _not_allowed(config)  # Keras takes a name in place of an initializer, for example


def _check_object(config, registered):
    name, module, package = (config.get(key) for key in ("class_name", "module", "registered_name"))
    if name in list(_PLAIN):
        allowed = set(config) == {"class_name", "config"}
    elif name == "function":  # its name is in the place of a class's config
        package = config.get("config")
        function = registered.get(package) if isinstance(package, str) else None
        allowed = module == "builtins" and not isinstance(function, (type, type(None)))
        allowed = allowed and keras.saving.get_registered_object(package) is function
    elif isinstance(package, str) and ">" in package:
        cls = registered.get(package)
        allowed = isinstance(cls, type) and cls.__name__ == name and keras.saving.get_registered_object(package) is cls
    else:
        allowed = name in list(_ALLOWED.get(str(module), ())) and package in (None, name)
    if not allowed or not (name in _PLAIN or _KEYS <= set(config) <= _KEYS | _MORE_KEYS):
        raise _not_allowed(package or f"{module}.{name}", module)
    arguments = config["config"] if isinstance(config["config"], dict) else {}
    if arguments.get("stateful") is True and "return_sequences" in arguments:  # states are made with a value
        raise ValueError(f"`stateful` of {printable(str(name), 200)} must be False in a ticket, which has no states")
    for (cls, argument), most in MOST_OF_ARGUMENTS.items():
        values = arguments.get(argument) if cls == name else None
        for value in values if isinstance(values, list) else [values]:
            if value is not None and not (isinstance(value, (int, float)) and abs(value) <= most):
                raise ValueError(f"`{argument}` of {cls} must be at most {most} in a ticket")


def _check_constant(config):
    """Raise ValueError unless a config is an array of numbers."""
    array = config["config"] if set(config) == {"class_name", "config"} else None
    known = isinstance(array, dict) and set(array) == {"value", "dtype"} and isinstance(array["dtype"], str)
    if not known or array["dtype"] not in DTYPES or not _is_array(array["value"]):
        raise ValueError("a constant in the config must be an array of numbers")


def _is_array(value, depth=0):
    if isinstance(value, list):
        return depth < 32 and all(_is_array(part, depth + 1) for part in value)
    return isinstance(value, (int, float))


def _not_allowed(received, module=None):
    own = f"a layer of your own, whose class is registered with {_REGISTER} and among `custom_objects`"
    others = f"others must be registered with {_REGISTER} and be among `custom_objects`"
    if module == "keras.layers" and str(received).removeprefix("keras.layers.") in _PREPROCESSING:
        others = "this one is not among those (docs/ticket-format.md lists them): apply it before the model"
    elif module == "keras.layers":
        others = f"this one runs code or opens files: instead write {own}"
    elif str(module).startswith("keras.src.ops"):
        others = f"this operation is not among those (docs/ticket-format.md lists them): call it in {own}"
    what = printable(str(received), 200)
    return ValueError(f"A ticket holds layers of keras_mpt and ordinary ones of Keras; {others}. Received: {what}")


def build(config, check_shapes, most, custom_objects=(), settings=None):
    """Return the model of a config, with initialized variables; kernels of MPT layers are zeros.

    Args:
        config: The result of `describe`.
        check_shapes: Called with the model while its variables have shapes but no memory; raises if these are not as
            expected.
        most: Largest number of variables, and of their entries together. It also limits variables that exist only
            during the construction.
        custom_objects: See `check`.
        settings: The result of `global_settings` when the config was made. A missing setting means Keras' default.

    Raises:
        ValueError: The config has an object that is not on the list.
        Exception: Any exception of Keras for a meaningless config.
    """
    check(config, custom_objects)
    config = _mapped(_known, config)
    settings = {key: (settings or {}).get(key, values[0]) for key, values in SETTINGS.items()}
    now, names = global_settings(), FREE_TENSORS + TENSORS_PER_OBJECT * _object_count(config)
    with _global_settings(settings):
        measured = _mapped(_without_constants, config)
        if measured != config:  # counted before any of them is made
            with without_memory(most, names):
                keras.saving.deserialize_keras_object(_mapped(_with_zeros, measured))
        with without_memory(most, names):
            model = keras.saving.deserialize_keras_object(_mapped(_with_zeros, config))
            dtypes = _check_tensors(model)
            check_shapes(model)
    if settings["floatx"] != now["floatx"]:
        with _global_settings({**settings, "floatx": now["floatx"]}), without_memory(most, names):
            if _check_tensors(keras.saving.deserialize_keras_object(_mapped(_with_zeros, config))) != dtypes:
                raise ValueError(
                    f"the model computes in {settings['floatx']}, as Keras did when it was saved; now Keras would "
                    f"compute in {now['floatx']}: call `keras.config.set_floatx({settings['floatx']!r})` first"
                )
    state = random.getstate()  # initializers without a seed draw one here
    try:
        with _global_settings(settings), initializers.undrawn():
            return keras.saving.deserialize_keras_object(config)
    finally:
        random.setstate(state)


@contextlib.contextmanager
def _global_settings(settings):
    before, policy = global_settings(), keras.config.dtype_policy()
    try:
        _set(settings, settings["dtype_policy"])
        yield
    finally:
        _set(before, policy)


def _set(settings, policy):
    """Change only settings that differ: two of them are shared by all threads."""
    if keras.config.image_data_format() != settings["image_data_format"]:
        keras.config.set_image_data_format(settings["image_data_format"])
    if keras.config.floatx() != settings["floatx"]:
        keras.config.set_floatx(settings["floatx"])
    if keras.config.dtype_policy().name != settings["dtype_policy"]:
        keras.config.set_dtype_policy(policy)


def _object_count(config):
    """Return the number of objects in a config."""
    values = config.values() if isinstance(config, dict) else config if isinstance(config, list) else ()
    return sum(map(_object_count, values)) + (isinstance(config, dict) and "class_name" in config)


def _check_tensors(model):
    """Return the dtypes of all tensors in a model.

    Raises:
        ValueError: A tensor has more entries per sample than a ticket may ask for.
    """
    graphs = {id(g): g for g in (functional_graph(part) for part in [model, *(layer for _, layer in walk(model))]) if g}
    tensors = [tensor for graph in graphs.values() for tensor in _keras.symbolic_tensors(graph)]
    for tensor in tensors:
        if math.prod(n for n in tensor.shape if n is not None) > LARGEST_TENSOR:
            raise ValueError(f"a tensor of shape {tensor.shape} is larger than a ticket may ask for")
    return [tensor.dtype for tensor in tensors]


def _mapped(change, config):
    """Return JSON data with each object replaced by `change(object)`, inner objects first."""
    if isinstance(config, dict):
        return change({key: _mapped(change, value) for key, value in config.items()})
    return [_mapped(change, value) for value in config] if isinstance(config, (list, tuple)) else config


def _known(config):
    """Return an object without neutral arguments that this version of Keras does not know."""
    added, module = _ADDED.get(config.get("class_name"), {}), config.get("module")
    if added and module in ("keras.layers", "keras.initializers"):
        cls = getattr(getattr(keras, module.split(".")[1]), config["class_name"])
        known = inspect.signature(cls.__init__).parameters
        unknown = {name: value for name, value in added.items() if name not in known}
        arguments = config["config"].items()
        config["config"] = {k: v for k, v in arguments if k not in unknown or v != unknown[k]}
    return config


@contextlib.contextmanager
def without_memory(most, names=math.inf):
    """Create variables without values.

    Args:
        most: Largest number of variables, and of their entries together.
        names: Largest number of symbolic tensors and other objects that Keras numbers.

    Raises:
        ValueError: There are more.
    """
    variables, entries = most

    def on_variable(variable):
        nonlocal variables, entries
        variables, entries = variables - 1, entries - math.prod(variable.shape)
        if variables < 0 or entries < 0:
            raise ValueError(f"the variables are larger than the file says, {variable.path} among them")

    def on_name():
        nonlocal names
        names -= 1
        if names < 0:
            raise ValueError("the model is much larger than its description: layers inside layers are used again")

    with _keras.without_values(on_variable, on_name):
        yield


def _with_zeros(config):
    """Return an object with zeros for all initializers, which need no computation."""
    chosen = {key for key, value in config.items() if key.endswith("_initializer") and value is not None}
    return {**config, **dict.fromkeys(chosen, "zeros")}


def _without_constants(config):
    """Return an object without numbers that a layer would broadcast to its input: variables, which are counted."""
    if config.get("class_name") != "Normalization":
        return config
    return {**config, "config": {**config["config"], "mean": None, "variance": None}}


def plain(config):
    """Return the config as JSON data, without the optimizer and with our quantizers for those of larq."""
    return _mapped(_plain, config)


def _plain(config):
    if larq_objects.is_larq_config(config):
        return keras.saving.serialize_keras_object(larq_objects.to_ours(larq_objects.deserialize(config)))
    return {key: value for key, value in config.items() if key != "compile_config"}
