"""Keyword spotting as a ticket: a small recurrent network on sounds that the script makes itself.

    python examples/keyword_spotting.py

A word is two tones that glide from one frequency to another, one after the other, in noise, at some time within a
second; the network hears 24 bands of a spectrogram at 32 times. `to_mpt` makes MPT layers of a separable convolution, a
bidirectional GRU and a classifier; the dense twin has the same shape. Both networks find about 99% of the test words;
the ticket's file has 12.4 KB, the dense network as float32 143 KB.
"""

import argparse
import pathlib
import tempfile

import keras
import numpy as np
from keras import layers

import keras_mpt

EPOCHS = 20
WORDS = [(300, 900, 1500), (900, 300, 1500), (1500, 900, 300), (300, 1500, 900), (600, 600, 1200), (1200, 600, 600)]
RATE, SAMPLES, STEPS, BANDS = 8000, 4096, 32, 24


def sounds(number, seed):
    """Return spectrograms `(number, STEPS, BANDS)` and the numbers of their words."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, len(WORDS), number)
    waves = 0.3 * random.normal(size=(number, SAMPLES))
    for wave, word in zip(waves, labels, strict=True):
        length = random.integers(1800, 2600)
        start = random.integers(0, SAMPLES - length)
        frequencies = np.interp(np.linspace(0, 2, length), [0, 1, 2], WORDS[word]) * random.uniform(0.9, 1.1)
        tone = np.sin(2 * np.pi * np.cumsum(frequencies) / RATE + random.uniform(0, 6))
        wave[start : start + length] += random.uniform(0.3, 1.0) * tone * np.hanning(length)
    frames = waves.reshape(number, STEPS, SAMPLES // STEPS) * np.hanning(SAMPLES // STEPS)
    powers = np.log(1e-3 + np.abs(np.fft.rfft(frames))[:, :, 2 : 2 + BANDS])
    return ((powers - powers.mean()) / powers.std()).astype("float32"), labels


def network():
    """Return a recurrent network of plain Keras layers."""
    return keras.Sequential(
        [
            keras.Input((STEPS, BANDS)),
            layers.SeparableConv1D(64, 5, padding="same", name="filters"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Bidirectional(layers.GRU(48, name="gru"), name="memory"),
            layers.BatchNormalization(),
            layers.Dense(len(WORDS), name="logits"),
        ],
        name="keywords",
    )


def train(model, learning_rate, train_data, test_data):
    """Train a model; return its test accuracy."""
    schedule = keras.optimizers.schedules.CosineDecay(learning_rate, EPOCHS * -(-len(train_data[0]) // 64))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(schedule), loss, metrics=["accuracy"])
    model.fit(*train_data, 64, EPOCHS, verbose=2)
    return model.evaluate(*test_data, verbose=0)[1]


def main():
    keras.utils.set_random_seed(0)
    train_data, test_data = sounds(2000, seed=1), sounds(1000, seed=2)
    ticket = keras_mpt.models.to_mpt(network(), sparsity=0.5, seed=0)
    dense = keras_mpt.models.dense_twin(ticket)
    accuracy = {
        "dense": train(dense, 0.003, train_data, test_data),
        "ticket": train(ticket, 0.03, train_data, test_data),
    }

    with tempfile.TemporaryDirectory() as folder:
        file = keras_mpt.save_ticket(ticket, pathlib.Path(folder) / "keywords.mpt")
        loaded = keras_mpt.load_ticket(file.path)
    plain = keras_mpt.models.strip(loaded)  # of Keras' own layers
    expected = ticket.predict(test_data[0], verbose=0)
    np.testing.assert_allclose(plain.predict(test_data[0], verbose=0), expected, rtol=1e-3, atol=1e-3)
    print(f"\n{'':8}test accuracy")
    for name, value in accuracy.items():
        print(f"{name:8}{value:.1%}")
    floats = 4 * dense.count_params()
    print(f"The ticket's file: {file.size:,} bytes; the dense network as float32: {floats:,} bytes.")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
