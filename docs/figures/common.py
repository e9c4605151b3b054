"""What the scripts that draw the figures share: a card that is readable on light and dark pages, and a small training.

A card has a background of its own. With a transparent one, black text would vanish on a dark page.
"""

import pathlib

import keras
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from keras_mpt.layers import MPTConv2D, MPTDense

FOLDER = pathlib.Path(__file__).parent
PAPER, INK, PALE = "#f5f6f8", "#24292f", "#c4c9d0"
NEGATIVE, POSITIVE = "#c2571a", "#1f6f8b"  # told apart by colour-blind people, too
SIGNS = ListedColormap([NEGATIVE, PAPER, POSITIVE])


def card(width, height, columns=1, **kwargs):
    """Return a figure and its axes."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor=PAPER)
    axes = figure.subplots(1, columns, **kwargs)
    for axis in [axes] if columns == 1 else axes:
        axis.set_facecolor(PAPER)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save(figure, name, folder=FOLDER):
    """Write a figure as PNG."""
    figure.savefig(pathlib.Path(folder) / f"{name}.png", dpi=130, facecolor=PAPER, metadata={"Software": None})


def digits():
    """Return images, test images, labels and test labels of scikit-learn's digits, in [-1, 1]."""
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8, 1) / 8 - 1).astype("float32")
    return train_test_split(images, labels, test_size=0.3, random_state=0)


def network(sparsity=0.5, kernel_initializer="signed_constant"):
    """Return an untrained MPT-1/32 for digits, compiled."""
    keras.utils.set_random_seed(0)
    settings = {"sparsity": sparsity, "kernel_initializer": kernel_initializer}

    def block(filters, seed, pooling):
        return [
            MPTConv2D(filters, 3, padding="same", seed=seed, name=f"conv{seed}", **settings),
            pooling,
            keras.layers.BatchNormalization(center=False, scale=False),
            keras.layers.ReLU(),
        ]

    layers = [
        keras.Input((8, 8, 1)),
        *block(32, 1, keras.layers.Identity()),
        *block(64, 2, keras.layers.MaxPooling2D()),
    ]
    layers += [*block(64, 3, keras.layers.GlobalAveragePooling2D()), MPTDense(10, seed=4, name="logits", **settings)]
    model = keras.Sequential(layers)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"])
    return model
