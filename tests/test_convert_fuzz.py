"""Random networks of signs as integers: in LiteRT and in TensorFlow Lite Micro's own interpreter."""

import keras
import numpy as np
import pytest

from keras_mpt import convert, quantizers
from keras_mpt.layers import MPTConv1D, MPTConv2D, MPTDense, MPTDepthwiseConv2D

pytestmark = [pytest.mark.tensorflow_only, pytest.mark.slow]
L = keras.layers
SEEDS = range(40)
VARIANCES = (1e-12, 1e-6, 0.3, 1.0, 3.0, 1e6)
FILES = [("tflm", {}), ("tflm", {"compress": True}), *(("tflite", {"weights": w}) for w in ("integer", "integer2"))]
FILES += [("tflite", {"weights": "integer2_dense"}), ("tflite", {"weights": "auto", "batch": 3})]


@pytest.fixture(autouse=True)
def extras():
    pytest.importorskip("tensorflow")
    pytest.importorskip("tflite_micro")


class Maker:
    """Makes a random network. What comes before a sign has random offsets, so that no value is exactly zero."""

    def __init__(self, seed):
        self.random, self.count = np.random.default_rng(seed), 0

    def one(self, *values):
        return values[self.random.integers(len(values))]

    def chance(self, probability):
        return self.random.random() < probability

    def norm(self, x, extreme=False):
        """Apply normalization; after extreme ones, only signs are well-conditioned."""
        variance = self.one(*VARIANCES) if extreme else 1.0
        layer = L.BatchNormalization(scale=self.chance(0.7), center=self.chance(0.7), epsilon=self.one(1e-3, 1e-5))
        y = layer(x)
        channels = layer.moving_mean.shape
        layer.moving_variance.assign(variance * self.random.uniform(0.5, 1.5, channels))
        layer.moving_mean.assign(self.random.normal(0, self.one(0.1, 1.0), channels))
        if layer.scale:
            gamma = self.random.normal(0, 1, channels)
            layer.gamma.assign(np.where(self.random.random(channels) < 0.1, 0, gamma))
        if layer.center:
            layer.beta.assign(self.random.normal(0, self.one(0.1, 1.0, 30.0), channels))
        return y

    def layer(self, x, signs=True, same=False):
        """Apply a random layer with a kernel that fits; with `same`, one that keeps the size."""
        how = {"seed": int(self.random.integers(1 << 30)), "sparsity": self.one(0.0, 0.3, 0.5, 0.9)}
        how |= {"use_bias": self.chance(0.3), "activation": self.one(None, None, None, "relu", "tanh")}
        if signs:
            how["input_quantizer"] = self.one("approx_sign", "ste_sign", "swish_sign")
        rank, filters = len(x.shape) - 2, int(self.one(1, 3, 4, 8, 12))
        if rank == 0 or self.chance(0.1) and not same:
            layer = MPTDense(filters, **how)
        else:
            sizes = [int(self.random.integers(1, min(size, 4) + 1)) for size in x.shape[1:-1]]
            how |= {
                "padding": self.one("valid", "same", 1, 2),
                "pad_values": float(self.one(-1, 0, 1)) if signs else 0.0,
            }
            steps = self.one("none", "strides", "dilation")
            if same:
                how["padding"], steps = "same", self.one("none", "dilation")
            if steps == "strides":
                how["strides"] = int(self.one(2, 3))
            if steps == "dilation" and all((size - 1) * 2 < n for size, n in zip(sizes, x.shape[1:-1], strict=True)):
                how["dilation_rate"] = 2
            if how["padding"] == "valid":
                how["pad_values"] = 0.0
            if rank == 1:
                layer = MPTConv1D(filters, sizes[0], **how)
            elif self.chance(0.3):
                layer = MPTDepthwiseConv2D(sizes, depth_multiplier=int(self.one(1, 2)), **how)
            else:
                layer = MPTConv2D(filters, sizes, **how)
        y = layer(x)
        if layer.bias is not None:
            layer.bias.assign(self.random.normal(0, 0.3, layer.bias.shape))
        return y

    def after(self, x):
        """Apply normalization, pooling, activations in random order."""
        steps = [self.norm]
        if len(x.shape) > 2 and min(x.shape[1:-1]) > 1 and self.chance(0.4):
            pool = L.MaxPooling1D if len(x.shape) == 3 else L.MaxPooling2D
            steps.append(pool(2, self.one(1, 2), padding=self.one("valid", "same")))
        if self.chance(0.3):
            steps.append(self.one(L.ReLU(), L.LeakyReLU(), L.Activation("tanh"), L.Activation("softsign"), L.ELU()))
        if self.chance(0.2):
            steps.append(L.Dropout(0.5))
        self.random.shuffle(steps)
        for step in steps:
            x = self.norm(x, self.chance(0.3)) if step is steps[-1] == self.norm else step(x)
        return x

    def block(self, x):
        if self.chance(0.25) and len(x.shape) > 2:
            y = self.norm(self.layer(x, same=True))
            if x.shape == y.shape:
                return L.Add()([x, y])
        return self.after(self.layer(x))

    def body(self, shape, name, dtype):
        """Return an input and the features of a random chain of layers of signs."""
        inputs = x = keras.Input(shape, name=name, dtype=dtype)
        if dtype == "uint8":
            x = L.Rescaling(1 / 127.5, offset=-0.9)(x)
        x = self.one(self.norm, lambda x: self.norm(self.layer(x, signs=False)), lambda x: x)(x)
        for _ in range(self.random.integers(1, 4)):
            x = self.block(x)
        return inputs, x

    def head(self, x):
        if len(x.shape) > 2:
            flat = [L.Flatten(), L.GlobalMaxPooling1D() if len(x.shape) == 3 else L.GlobalMaxPooling2D()]
            x = self.one(*flat)(x)
        last = self.one("logits", "signs", "features")
        if last == "logits":
            return self.layer(x)
        return L.Activation(quantizers.ApproxSign())(self.norm(x)) if last == "signs" else self.norm(x)

    def shape(self):
        kind, size = self.one("image", "image", "sequence", "flat"), lambda: int(self.random.integers(4, 11))
        channels = int(self.one(1, 3, 4, 5))
        return {"image": (size(), size(), channels), "sequence": (2 * size(), channels), "flat": (4 * size(),)}[kind]


def network(seed):
    """Return a model, the argument `preprocess`, and samples."""
    maker = Maker(seed)
    pixels, count = maker.chance(0.3), maker.one(1, 1, 2)
    dtypes = ["uint8" if maker.chance(0.25) else "float32" for _ in range(count)]
    preprocess = None
    if pixels and (count, dtypes[0]) == (1, "float32"):
        preprocess = (0.48, 0.21)
    bodies = [maker.body(maker.shape(), f"input_{i}", dtype) for i, dtype in enumerate(dtypes)]
    outputs = [maker.head(x) for _, x in bodies]
    if count == 1 and maker.chance(0.3):
        outputs.append(maker.head(bodies[0][1]))
    if count == 2 and maker.chance(0.5):
        outputs = [maker.head(L.Concatenate()(outputs))]
    model = keras.Model([inputs for inputs, _ in bodies], outputs)
    samples = []
    for inputs, dtype in zip(model.inputs, dtypes, strict=True):
        size = (5, *inputs.shape[1:])
        bytes_ = dtype == "uint8" or preprocess is not None
        values = maker.random.integers(0, 256, size) if bytes_ else maker.random.normal(0, 1, size)
        samples.append(values.astype("uint8" if bytes_ else "float32"))
    return model, preprocess, samples


@pytest.mark.parametrize("seed", SEEDS)
def test_random_networks(seed, tmp_path):
    model, preprocess, samples = network(seed)
    target, how = FILES[seed % len(FILES)]
    path = tmp_path / "model.tflite"
    report = getattr(convert, f"to_{target}")(model, path, preprocess=preprocess, samples=samples, **how)
    assert report.flips == 0
    found = convert.run(path, target, samples)
    found = list(found.values()) if isinstance(found, dict) else [found]
    floats = [(x.astype("float32") / 255 - 0.48) / 0.21 for x in samples] if preprocess else samples
    expected = model.predict(floats if len(floats) > 1 else floats[0], verbose=0)
    for ours, theirs in zip(found, expected if isinstance(expected, list) else [expected], strict=True):
        scale = np.abs(theirs).max(axis=tuple(range(1, theirs.ndim)), keepdims=True)
        assert np.all(np.abs(ours - theirs) <= 1e-4 * np.maximum(scale, 0.01 * scale.max()))
