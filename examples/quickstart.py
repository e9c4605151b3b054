"""A first multi-prize ticket in two minutes: handwritten digits, no download.

    python examples/quickstart.py

Trains three networks of one shape on scikit-learn's digits (1,797 images of 8x8 pixels): a dense one, whose weights
are trained, and two tickets, which select from frozen random weights: MPT-1/32 (binary weights) and MPT-1/1 (binary
weights and activations). Prints their summaries, saves and loads the tickets, strips them to plain Keras models,
converts them for phones, and checks that all of these give the same outputs.
"""

import argparse
import importlib.util
import pathlib
import tempfile

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import keras_mpt
from keras_mpt.layers import MPTConv2D, MPTDense

EPOCHS = 30
BATCH_SIZE = 32
SEED = 0


def network(name, input_quantizer=None):
    """Return a small convolutional network of frozen random weights, half of which each layer keeps."""
    settings = {"padding": "same", "sparsity": 0.5, "pad_values": 1.0 if input_quantizer else 0.0}
    rectify = keras.layers.ReLU if input_quantizer is None else keras.layers.Identity
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            MPTConv2D(64, 3, seed=SEED, **settings),  # the image itself stays float
            keras.layers.BatchNormalization(center=False, scale=False),
            rectify(),
            MPTConv2D(64, 3, seed=SEED + 1, input_quantizer=input_quantizer, **settings),
            keras.layers.MaxPooling2D(),
            keras.layers.BatchNormalization(center=False, scale=False),
            rectify(),
            MPTConv2D(128, 3, seed=SEED + 2, input_quantizer=input_quantizer, **settings),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.BatchNormalization(center=False, scale=False),
            rectify(),
            MPTDense(10, sparsity=0.5, seed=SEED + 3, input_quantizer=input_quantizer),
        ],
        name=name,
    )


def train(model, optimizer, learning_rate, data):
    train_images, test_images, train_labels, test_labels = data
    steps = EPOCHS * -(-len(train_images) // BATCH_SIZE)
    model.compile(
        optimizer(keras.optimizers.schedules.CosineDecay(learning_rate, steps)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    print(f"\n{model.name}: {EPOCHS} epochs")
    model.fit(train_images, train_labels, BATCH_SIZE, EPOCHS, callbacks=[keras_mpt.callbacks.CheckScores()], verbose=2)
    return model.evaluate(test_images, test_labels, verbose=0)[1]


def check(model, images, folder):
    """Save a ticket, load, strip and convert it, and compare the outputs; return the ticket."""
    expected = keras.ops.convert_to_numpy(model(images))
    ticket = keras_mpt.save_ticket(model, folder / f"{model.name}.mpt", provenance={"data": "scikit-learn's digits"})
    loaded = keras_mpt.load_ticket(ticket.path)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(loaded(images)), expected)

    plain = keras_mpt.models.strip(loaded)
    np.testing.assert_allclose(plain.predict(images, verbose=0), expected, rtol=1e-4, atol=1e-4)
    print(f"{model.name}: its file and the stripped model give the same logits for {len(images)} images")
    if keras.backend.backend() == "tensorflow":  # which conversion needs
        print(f"\n{keras_mpt.convert.to_tflite(ticket.path, folder / 'phone.tflite', samples=images)}")
        if importlib.util.find_spec("larq_compute_engine"):
            print(f"\n{keras_mpt.convert.to_lce(ticket.path, folder / 'phone.lce', samples=images)}")
    return ticket


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    keras.utils.set_random_seed(SEED)
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8, 1) / 8 - 1).astype("float32")
    data = train_test_split(images, labels, test_size=0.3, random_state=SEED, stratify=labels)

    mpt_32, mpt_1 = network("MPT-1-32"), network("MPT-1-1", "approx_sign")
    dense = keras_mpt.models.dense_twin(mpt_32)
    accuracy = {
        "dense, all weights trained": train(dense, keras.optimizers.Adam, 0.003, data),
        "MPT-1/32, weights chosen": train(mpt_32, keras.optimizers.Adam, 0.03, data),
        "MPT-1/1, weights chosen": train(mpt_1, keras.optimizers.Adam, 0.03, data),
    }

    sizes = [None]
    for model in (mpt_32, mpt_1):
        print()
        keras_mpt.models.summary(model)
        with tempfile.TemporaryDirectory() as folder:
            ticket = check(model, data[1], pathlib.Path(folder))
        print(f"\n{ticket}")
        sizes.append(ticket.size)

    float32 = 4 * dense.count_params()
    print(f"\n{'':30}test accuracy   float32 weights      ticket file")
    for (name, value), size in zip(accuracy.items(), sizes, strict=True):
        file = "" if size is None else f"{size:11,d} bytes"
        print(f"{name:30}{value:13.1%}{float32:12,d} bytes{file}")


if __name__ == "__main__":
    main()
