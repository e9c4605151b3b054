"""A Keras model of your own as a multi-prize ticket: kernels are random and frozen, their masks are trained.

    python examples/own_model.py

Converts a small residual network of plain Keras layers, trains it on scikit-learn's digits, saves and loads the ticket,
and strips it to plain Keras layers again.
"""

import argparse
import pathlib
import tempfile

import keras
import numpy as np
from keras import layers
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import keras_mpt

EPOCHS = 20


def network():
    """Return a residual network of plain Keras layers."""
    image = keras.Input((8, 8, 1))
    x = layers.Conv2D(64, 3, padding="same", name="stem")(image)
    for block in (1, 2):
        y = layers.ReLU()(layers.BatchNormalization(scale=False)(x))
        y = layers.Conv2D(64, 3, padding="same", name=f"block{block}")(y)
        x = layers.Add()([x, y])
    x = layers.BatchNormalization(scale=False)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(image, layers.Dense(10, name="logits")(x), name="residual")


def main():
    keras.utils.set_random_seed(0)
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8, 1) / 8 - 1).astype("float32")
    images, test_images, labels, test_labels = train_test_split(images, labels, test_size=0.3, random_state=0)

    # Half of each layer's weights go, but a fifth of the stem's. Biases and batch normalization train as usual.
    ticket = keras_mpt.models.to_mpt(network(), sparsity={"stem": 0.2}, seed=0)
    steps = EPOCHS * -(-len(images) // 32)
    ticket.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.03, steps)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    ticket.fit(images, labels, 32, EPOCHS, callbacks=[keras_mpt.callbacks.CheckScores()], verbose=2)
    print(f"\nTest accuracy: {ticket.evaluate(test_images, test_labels, verbose=0)[1]:.1%}\n")
    keras_mpt.summary(ticket)

    with tempfile.TemporaryDirectory() as folder:
        file = keras_mpt.save_ticket(ticket, pathlib.Path(folder) / "residual.mpt")
        loaded = keras_mpt.load_ticket(file.path)
    plain = keras_mpt.models.strip(loaded)  # of Keras' own layers, for where keras_mpt is not installed
    expected = ticket.predict(test_images, verbose=0)
    np.testing.assert_allclose(plain.predict(test_images, verbose=0), expected, rtol=1e-4, atol=1e-4)
    print(
        f"\nThe file of {file.size:,} bytes gives the same logits; as float32 it is {4 * plain.count_params():,} bytes."
    )


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
