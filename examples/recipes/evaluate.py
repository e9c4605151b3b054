"""Test accuracy on CIFAR-10 from a file: a preset of the zoo, a ticket of yours, or what one was converted to.

    python evaluate.py --weights conv4_mpt32_s50 --data_dir DIR
    python evaluate.py --weights conv4_mpt11_s50 --runtime lce --data_dir DIR    # its published phone file
    python evaluate.py --weights runs/conv4/ticket.mpt --data_dir DIR
    python evaluate.py --weights conv4.tflite --runtime tflite --data_dir DIR

Keras runs on every backend (KERAS_BACKEND); with `--data_dir FILE.npz` without TensorFlow: see cifar10.py.
"""

import backend  # noqa: F401 - before Keras
import cifar10
import keras
import numpy as np
from absl import app, flags

import keras_mpt

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "weights", None, "A preset of keras_mpt.zoo ('all': each), or a .mpt or .tflite file.", required=True
)
flags.DEFINE_bool("flip", False, "Average the logits of each image and its mirror image.")
flags.DEFINE_enum("runtime", "keras", ["keras", "tflite", "lce"], "Keras, or the runtime of a converted file.")
flags.DEFINE_string("data_dir", None, "Folder of tensorflow-datasets, or an npz file: see cifar10.py.")


def accuracy(logits, labels):
    """Return the fraction of images whose largest logit is that of the label."""
    return float(np.mean(np.argmax(logits, axis=-1) == labels))


def with_mirror_images(predict):
    """Return a function that averages the outputs for images `(number, height, width, channels)` and mirrored ones."""
    return lambda images: (predict(images) + predict(images[:, :, ::-1])) / 2


def contestants(weights, runtime):
    """Return {name: (function from images to inputs, function from inputs to logits)}.

    Raises:
        app.UsageError: There is no such file for this runtime, or one of a preset is not the one that was published.
    """
    if weights.endswith((".mpt", ".tflite")):
        if weights.endswith(".mpt") != (runtime == "keras"):
            raise app.UsageError(f"--runtime {runtime} runs no such file. Received: --weights {weights}")
        return {weights: (cifar10.normalize, _predictor(weights, runtime))}
    presets = keras_mpt.zoo.list_presets() if weights == "all" else [keras_mpt.zoo.get_preset(weights)]
    shipped = [preset for preset in presets if runtime == "keras" or "file" in preset.converted.get(runtime, {})]
    if not shipped:
        raise app.UsageError(
            f"No file for {runtime} is published of --weights {weights}. Convert the ticket (python -m keras_mpt "
            "convert) and pass the file"
        )
    try:
        paths = [preset.published(runtime) for preset in shipped]
    except keras_mpt.TicketError as error:
        raise app.UsageError(str(error)) from error
    names = [preset.name if runtime == "keras" else path.name for preset, path in zip(shipped, paths, strict=True)]
    predictors = [(p.preprocess, _predictor(path, runtime)) for p, path in zip(shipped, paths, strict=True)]
    return dict(zip(names, predictors, strict=True))


def _predictor(path, runtime):
    if runtime != "keras":
        return lambda inputs: keras_mpt.convert.run(path, runtime, inputs)
    model = keras_mpt.load_ticket(path)
    return lambda inputs: model.predict(inputs, batch_size=500, verbose=0)


def main(_):
    found = contestants(FLAGS.weights, FLAGS.runtime)
    images, labels = cifar10.load(FLAGS.data_dir)["test"]
    where = keras.backend.backend() if FLAGS.runtime == "keras" else FLAGS.runtime
    for name, (preprocess, predict) in found.items():
        predict = with_mirror_images(predict) if FLAGS.flip else predict
        share = accuracy(predict(preprocess(images)), labels)
        print(f"{name}: {share:.2%} of {len(labels):,} test images ({where})")


if __name__ == "__main__":
    app.run(main)
