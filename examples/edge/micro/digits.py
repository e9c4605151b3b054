"""Handwritten digits on a microcontroller: train, convert, run in TensorFlow Lite Micro, write what to compile.

Trains an MPT-1/1 network on scikit-learn's digits (1,797 images of 8x8 pixels), saves its ticket, converts it to
integers and runs the file on all test images in TensorFlow Lite Micro's own interpreter. Writes to the folder
`digits.mpt`, `digits.tflite`, `digits.cc` (the file as a C++ array), `main.cc` (a program around it) and `images.h`
(ten images for that). See README.md.

    python examples/edge/micro/digits.py --output_dir OUT          # needs the extras tensorflow, tflm and examples
"""

import argparse
import pathlib

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import keras_mpt
from keras_mpt.layers import MPTConv2D, MPTDense

MAIN = """\
#include <cstdio>
#include "images.h"
#include "tensorflow/lite/micro/micro_interpreter.h"
#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"
#include "tensorflow/lite/schema/schema_generated.h"

extern const unsigned char digits[];

alignas(16) static unsigned char arena[{arena}];

int main() {{
  {resolver}
  tflite::MicroInterpreter interpreter(tflite::GetModel(digits), resolver, arena, sizeof(arena));
  if (interpreter.AllocateTensors() != kTfLiteOk) return 1;
  for (int i = 0; i < number; i++) {{
    for (int j = 0; j < pixels; j++) interpreter.input(0)->data.f[j] = images[i][j] / 8.0f - 1.0f;
    if (interpreter.Invoke() != kTfLiteOk) return 1;
    const float* logits = interpreter.output(0)->data.f;
    int best = 0;
    for (int k = 1; k < 10; k++) if (logits[k] > logits[best]) best = k;
    std::printf("%d, is %d\\n", best, labels[i]);
  }}
}}
"""


def network(seed=0):
    """A network of binary activations behind its first layer; half of its random weights are kept."""
    signs = {"input_quantizer": "approx_sign", "sparsity": 0.5}
    norms = iter(range(9))

    def norm():
        return keras.layers.BatchNormalization(center=False, scale=False, name=f"norm{next(norms)}")

    return keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            MPTConv2D(32, 3, padding="same", sparsity=0.5, name="conv1", seed=seed),  # its input is float
            norm(),
            MPTConv2D(64, 3, padding="same", pad_values=1.0, name="conv2", seed=seed + 1, **signs),
            keras.layers.MaxPooling2D(),
            norm(),
            MPTConv2D(64, 3, padding="same", pad_values=1.0, name="conv3", seed=seed + 2, **signs),
            keras.layers.MaxPooling2D(),
            norm(),
            keras.layers.Flatten(),
            MPTDense(10, name="logits", seed=seed + 3, **signs),
        ],
        name="digits",
    )


def data(seed=0):
    """Return the training images and labels, and those of the test; pixels from -1 to 1."""
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8, 1) / 8 - 1).astype("float32")
    train, test, train_labels, test_labels = train_test_split(
        images, labels, test_size=0.3, random_state=seed, stratify=labels
    )
    return (train, train_labels), (test, test_labels)


def header(images, labels):
    """Return the C source of some images as pixels from 0 to 16, and their labels."""
    pixels = np.round((images + 1) * 8).astype(int).reshape(len(images), -1)
    rows = ",\n    ".join("{" + ", ".join(map(str, row)) + "}" for row in pixels)
    return (
        f"static const int number = {len(images)}, pixels = {pixels.shape[1]};\n"
        f"static const int labels[] = {{{', '.join(map(str, labels))}}};\n"
        f"static const unsigned char images[][{pixels.shape[1]}] = {{\n    {rows}\n}};\n"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=pathlib.Path, required=True)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--compress", action="store_true", help="store kernels in two bits")
    arguments = parser.parse_args()
    folder = arguments.output_dir
    folder.mkdir(parents=True, exist_ok=True)

    (images, labels), (test_images, test_labels) = data()
    keras.utils.set_random_seed(0)
    model = network()
    steps = arguments.epochs * -(-len(images) // 32)
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.03, steps)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.fit(images, labels, 32, arguments.epochs, verbose=2)
    ticket = keras_mpt.save_ticket(model, folder / "digits.mpt", provenance={"data": "scikit-learn's digits"})

    how = {"compress": arguments.compress, "samples": test_images}
    report = keras_mpt.convert.to_tflm(ticket.path, folder / "digits.tflite", **how)
    keras_mpt.convert.to_tflm(ticket.path, folder / "digits.cc", **how)
    print(report)

    logits = keras_mpt.convert.run(folder / "digits.tflite", "tflm", test_images)
    same = (logits.argmax(axis=1) == model.predict(test_images, verbose=0).argmax(axis=1)).mean()
    right = (logits.argmax(axis=1) == test_labels).mean()
    print(f"\nTensorFlow Lite Micro: {right:.1%} of {len(test_labels)} images right, {same:.1%} as Keras says")
    notes = dict(report.notes)
    arena = 2 * int(notes["Arena"].split()[0].replace(",", ""))
    (folder / "main.cc").write_text(MAIN.format(arena=arena, resolver=notes["Register"]))
    (folder / "images.h").write_text(header(test_images[:10], test_labels[:10]))


if __name__ == "__main__":
    main()
