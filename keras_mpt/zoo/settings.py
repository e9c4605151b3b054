"""The settings of a network of the zoo, checked on creation."""

import dataclasses
import inspect

import keras
import numpy as np

from keras_mpt import initializers, quantizers
from keras_mpt.arguments import check_bool, check_count, check_number, check_positive, check_sparsity, is_count, shown
from keras_mpt.masks import GlobalTopK, MaskRule, TopK

_SWITCHES = ("batch_norm_affine", "float_stem", "include_top")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Arguments that the functions of `keras_mpt.zoo` share. Their signatures have the defaults.

    Args:
        input_shape: Height, width and channels of an image. Height and width may be None, for images of any size,
            unless the network flattens, as Conv-n and VGG do with `include_top`.
        classes: Number of logits.
        sparsity: Fraction removed of each layer's weights, or a dict from layer names to fractions.
        default_sparsity: Fraction for the layers that such a dict leaves out; the default of the network.
        mask: None: `TopK(sparsity)` in each layer. Or a rule of `keras_mpt.masks` for all layers, such as
            `GlobalTopK(0.9)`, which replaces `sparsity`. Or a function that returns a layer's rule for its sparsity,
            such as the class `Restricted`.
        input_quantizer: None for MPT-1/32; `"approx_sign"` or another activation quantizer for MPT-1/1.
        kernel_quantizer: `"scaled_sign"` (Biprop) or None (Edge-Popup).
        kernel_initializer: Initializer of the frozen kernels; see `keras_mpt.initializers`.
        batch_norm_affine: Whether batch normalization has trainable gamma and beta.
        float_stem: Whether the first convolution is an ordinary one with trained weights.
        pad_values: Padding value of the convolutions; 1.0 keeps the inputs of binary convolutions binary. The first
            convolution pads the image with zeros.
        width: Factor on the numbers of filters and units, > 0.
        seed: Integer in `[0, 2**64)` from which the layers' seeds are derived, in the order of construction; None draws
            one.
        include_top: Whether to add the classifier. Without it, the network returns the features in front of the
            classifier's global pooling or flattening.

    Raises:
        ValueError: An argument is out of range.
    """

    input_shape: tuple
    classes: int
    sparsity: float | dict
    default_sparsity: float
    mask: object = None
    input_quantizer: object = None
    kernel_quantizer: object = "scaled_sign"
    kernel_initializer: object = "kaiming_normal"
    batch_norm_affine: bool = False
    float_stem: bool = False
    pad_values: float = 0.0
    width: float = 1.0
    seed: int | None = None
    include_top: bool = True

    def __post_init__(self):
        shape = self.input_shape if isinstance(self.input_shape, (tuple, list)) else ()
        if len(shape) != 3 or not all(side is None or is_count(side) for side in shape[:2]) or not is_count(shape[2]):
            raise ValueError(
                "`input_shape` must be three integers > 0, channels last; height and width may be None. "
                f"Received: input_shape={self.input_shape!r}"
            )
        check_count("classes", self.classes)
        self._check_sparsity_and_mask()
        quantizers.get_activation(self.input_quantizer)
        quantizers.get_kernel(self.kernel_quantizer)
        initializers.get(self.kernel_initializer, "kernel_initializer")
        check_number("pad_values", self.pad_values)
        check_positive("width", self.width)
        initializers.check_seed(self.seed)
        for name in _SWITCHES:
            check_bool(name, getattr(self, name))
        kinds = {"input_shape": tuple, "classes": int, "pad_values": float, "width": float}
        for name, kind in (kinds | dict.fromkeys(_SWITCHES, bool)).items():  # numpy's cannot be saved
            object.__setattr__(self, name, kind(getattr(self, name)))

    def _check_sparsity_and_mask(self):
        for fraction in self.sparsity.values() if isinstance(self.sparsity, dict) else [self.sparsity]:
            if isinstance(fraction, MaskRule):
                raise ValueError(f"`sparsity` must be a number; pass a rule as `mask`. Received: sparsity={fraction!r}")
            check_sparsity("sparsity", fraction)
        mask = self.mask
        if isinstance(mask, dict):  # a config, as a ticket's provenance holds it
            mask = keras.saving.deserialize_keras_object(mask)
        if mask is GlobalTopK or not (mask is None or isinstance(mask, MaskRule) or _takes_a_sparsity(mask)):
            raise ValueError(
                "`mask` must be None, a rule of keras_mpt.masks such as GlobalTopK(0.9), or a function that makes one "
                f"from a sparsity. Received: mask={mask!r}"
            )
        if isinstance(mask, MaskRule) and self.sparsity not in (self.default_sparsity, mask.sparsity):
            raise ValueError(
                f"`sparsity` must be left out where `mask` is a rule. Received: sparsity={self.sparsity!r}, {mask=}"
            )
        object.__setattr__(self, "mask", mask)

    @property
    def binary(self):
        """Whether activations are binary: MPT-1/1."""
        return self.input_quantizer is not None

    def rule(self, layer):
        """Return the mask rule of the MPT layer with this name."""
        if isinstance(self.mask, MaskRule):
            return self.mask
        by_layer = isinstance(self.sparsity, dict)
        sparsity = self.sparsity.get(layer, self.default_sparsity) if by_layer else self.sparsity
        rule = (self.mask or TopK)(sparsity)
        if not isinstance(rule, MaskRule):
            raise ValueError(f"`mask` must return a rule of keras_mpt.masks. Received: {shown(rule)} for {layer!r}")
        return rule

    def scaled(self, number):
        """Return a number of filters or units times the width."""
        scaled = self.width * number
        if not is_count(round(min(scaled, 1e18))):
            what = f"leaves none of {number}" if scaled < 1 else f"makes {scaled:g} of {number}"
            raise ValueError(
                "`width` must leave every layer an output, and at most 2^31 - 1. "
                f"Received: width={self.width!r}, which {what}"
            )
        return round(scaled)


def _takes_a_sparsity(mask):
    """Return whether a value can be called as `mask(sparsity)`."""
    try:
        inspect.signature(mask).bind(0.5)
    except (TypeError, ValueError):  # not callable, other parameters, or of C
        return False
    return True


def same(argument, one, other):
    """Return whether two values of an argument are equivalent, such as a quantizer's name and its config."""
    forms = {
        "input_shape": lambda value: tuple(value) if isinstance(value, list) else value,
        "mask": lambda value: value if isinstance(value, dict) else keras.saving.serialize_keras_object(value),
        "input_quantizer": lambda value: quantizers.serialize(quantizers.get_activation(value)),
        "kernel_quantizer": lambda value: quantizers.serialize(quantizers.get_kernel(value)),
        "kernel_initializer": lambda value: keras.initializers.serialize(initializers.get(value, argument)),
    }
    form = forms.get(argument, lambda value: value)
    equal = form(one) == form(other)
    return isinstance(equal, (bool, np.bool_)) and bool(equal)  # arrays are compared entry by entry
