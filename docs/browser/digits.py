"""Train the ticket that the page "Try a ticket in your browser" draws digits for: docs/browser/digits.mpt.

The network is that of `make demo` (MPT-1/32), trained on the same digits and on copies of them moved by a pixel,
because what is drawn is not always in the middle.

    python docs/browser/digits.py
"""

import pathlib
import sys

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import keras_mpt

HERE = pathlib.Path(__file__).resolve().parent
sys.path.append(str(HERE.parents[1] / "examples"))
from quickstart import network  # noqa: E402

EPOCHS, BATCH_SIZE = 15, 64


def moved(images):
    """Return images and four copies, each moved by a pixel; -1 is white paper."""
    padded = np.pad(images, [(0, 0), (1, 1), (1, 1), (0, 0)], constant_values=-1)
    return np.concatenate([padded[:, y : y + 8, x : x + 8] for y, x in ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2))])


def main():
    keras.utils.set_random_seed(0)
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8, 1) / 8 - 1).astype("float32")
    train, test, train_labels, test_labels = train_test_split(
        images, labels, test_size=0.3, random_state=0, stratify=labels
    )
    train, train_labels = moved(train), np.tile(train_labels, 5)
    model = network("digits")
    steps = EPOCHS * -(-len(train) // BATCH_SIZE)
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.03, steps)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(train, train_labels, BATCH_SIZE, EPOCHS, verbose=2)
    accuracy = model.evaluate(test, test_labels, verbose=0)[1]
    provenance = {"data": "scikit-learn's digits", "recipe": "python docs/browser/digits.py", "accuracy": accuracy}
    print(keras_mpt.save_ticket(model, HERE / "digits.mpt", provenance=provenance))


if __name__ == "__main__":
    main()
