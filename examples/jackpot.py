"""Jackpots: a search selects a part of a trained network's weights and changes none of them.

    python examples/jackpot.py

Trains a dense network on scikit-learn's digits. Its largest weights alone are worth little; two searches start from
them. A lottery jackpot has a tenth of the weights, and a file of masks beside the dense network. A binary jackpot has
the signs of a fifth, and a file that needs nothing else. The comparison on CIFAR-10 is
examples/recipes/jackpot_study.py.
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


def train(model, optimizer, data, epochs, callbacks=()):
    """Train a model; return its test accuracy."""
    images, test_images, labels, test_labels = data
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    model.fit(images, labels, 32, epochs, callbacks=list(callbacks), verbose=2)
    return model.evaluate(test_images, test_labels, verbose=0)[1]


def size_of_ticket(model, images, base=None):
    """Return the bytes of a model's ticket, which is read again."""
    with tempfile.TemporaryDirectory() as folder:
        ticket = keras_mpt.save_ticket(model, pathlib.Path(folder) / "jackpot.mpt", base=base)
        loaded = keras_mpt.load_ticket(ticket.path, base=base)
    np.testing.assert_allclose(loaded.predict(images, verbose=0), model.predict(images, verbose=0), atol=1e-4)
    return ticket.size


def main():
    keras.utils.set_random_seed(0)
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8, 1) / 8 - 1).astype("float32")
    data = train_test_split(images, labels, test_size=0.3, random_state=0)

    dense = keras.Sequential([keras.Input((8, 8, 1))])
    for filters in (64, 64, 128):
        dense.add(layers.Conv2D(filters, 3, padding="same", use_bias=False))
        dense.add(layers.BatchNormalization())
        dense.add(layers.ReLU())
    dense.add(layers.GlobalAveragePooling2D())
    dense.add(layers.Dense(10))
    accuracy = {"all weights": train(dense, keras.optimizers.Adam(0.003), data, EPOCHS)}

    jackpot = keras_mpt.models.to_jackpot(dense, sparsity=0.9)  # its largest weights, the classifier's all
    accuracy["the largest tenth"] = train(jackpot, "sgd", data, epochs=0)
    search = [keras_mpt.callbacks.ShortRestriction(EPOCHS)]
    accuracy["the tenth that was found"] = train(jackpot, keras.optimizers.SGD(0.1, momentum=0.9), data, EPOCHS, search)

    binary = keras_mpt.models.to_jackpot(dense, sparsity=0.8, kernel_quantizer="scaled_sign", data=data[0])
    accuracy["signs of the largest fifth"] = train(binary, "sgd", data, epochs=0)
    accuracy["signs of the fifth that was found"] = train(binary, keras.optimizers.Adam(0.001), data, EPOCHS)

    print()
    for name, value in accuracy.items():
        print(f"{name:<36}{value:.1%}")
    print(f"\nAll weights take {4 * dense.count_params():,} bytes.")
    print(f"The ticket of the tenth, {size_of_ticket(jackpot, data[1], dense):,} bytes, refers to the dense network.")
    print(f"The ticket of the signs, {size_of_ticket(binary, data[1]):,} bytes, needs nothing else.")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
