"""Weight recycling: between epochs, weights with small scores get the values of those with large ones.

    python examples/recycling.py

Trains a sparse Edge-Popup network on scikit-learn's digits without and with it (Gorbett & Whitley 2023), and prints
how many mask entries each epoch changes. With several seeds and on CIFAR-10: examples/recipes/recycling_study.py.
"""

import argparse

import keras
from keras import layers
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from keras_mpt.callbacks import IterativeWeightRecycling, MaskStatistics
from keras_mpt.layers import MPTConv2D, MPTDense

EPOCHS = 20
EDGE_POPUP = {"sparsity": 0.9, "kernel_quantizer": None, "kernel_initializer": "kaiming_normal"}


def network():
    model = keras.Sequential([keras.Input((8, 8, 1))])
    for seed, filters in enumerate((64, 64, 128)):
        model.add(MPTConv2D(filters, 3, padding="same", seed=seed, **EDGE_POPUP))
        model.add(layers.BatchNormalization(center=False, scale=False))
        model.add(layers.ReLU())
    model.add(layers.GlobalAveragePooling2D())
    model.add(MPTDense(10, seed=3, **EDGE_POPUP))
    return model


def main():
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8, 1) / 8 - 1).astype("float32")
    images, test_images, labels, test_labels = train_test_split(images, labels, test_size=0.3, random_state=0)
    for name, changes in {"plain": [], "recycling": [IterativeWeightRecycling(0.2, every=2)]}.items():
        keras.utils.set_random_seed(0)
        model = network()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(0.03), loss, metrics=["accuracy"])
        callbacks = [MaskStatistics(), *changes]
        history = model.fit(images, labels, 32, EPOCHS, callbacks=callbacks, verbose=2).history
        moved = ", ".join(f"{ratio:.1%}" for ratio in history["mask_flip_ratio"])
        accuracy = model.evaluate(test_images, test_labels, verbose=0)[1]
        print(f"\n{name}: {accuracy:.1%} of the test images. Part of all masks that each epoch changed: {moved}\n")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
