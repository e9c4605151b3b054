"""Classify pictures with a converted ticket, on a Raspberry Pi for example: needs LiteRT, numpy and Pillow only.

    python classify.py conv4.tflite cat.jpg dog.jpg

See README.md for how to make the file. Prints the class, its probability and the milliseconds of each picture.
"""

import argparse
import time

import numpy as np
from PIL import Image, ImageOps

try:
    from ai_edge_litert.interpreter import Interpreter
except ImportError:  # the older package of the same runtime
    from tflite_runtime.interpreter import Interpreter

CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()
MEAN, STD = np.float32([0.4914, 0.4822, 0.4465]), np.float32([0.2023, 0.1994, 0.2010])


def read(path, inputs):
    """Return a picture as the network takes it, `(1, height, width, 3)`: normalized, if the file does not do that."""
    _, height, width, _ = inputs["shape"]
    upright = ImageOps.exif_transpose(Image.open(path)).convert("RGB")  # a phone stores how it was held
    pixels = np.asarray(upright.resize((width, height), Image.Resampling.BILINEAR))[None]
    return pixels if inputs["dtype"] == np.uint8 else (pixels.astype(np.float32) / 255 - MEAN) / STD


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a file of keras_mpt.convert.to_tflite for CIFAR-10")
    parser.add_argument("picture", nargs="+")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()

    interpreter = Interpreter(model_path=options.model, num_threads=options.threads)
    interpreter.allocate_tensors()
    (inputs,), (outputs,) = interpreter.get_input_details(), interpreter.get_output_details()
    for path in options.picture:
        interpreter.set_tensor(inputs["index"], read(path, inputs))
        start = time.perf_counter()
        interpreter.invoke()
        milliseconds = 1e3 * (time.perf_counter() - start)
        logits = interpreter.get_tensor(outputs["index"])[0]
        if logits.min() >= 0 and abs(logits.sum() - 1) < 1e-3:
            raise SystemExit(f"{options.model} must give logits, as the tickets of the zoo do: it ends in a softmax.")
        probabilities = np.exp(logits - logits.max())
        probabilities /= probabilities.sum()
        best = int(probabilities.argmax())
        print(f"{path}: {CLASSES[best]} ({probabilities[best]:.0%}), {milliseconds:.2f} ms")


if __name__ == "__main__":
    main()
