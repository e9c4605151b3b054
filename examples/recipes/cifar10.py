"""CIFAR-10 as numpy arrays, and batches of it that are functions of seed, epoch and step alone."""

import io
import pathlib

import numpy as np
from batches import EpochBatches

MEAN = np.array([0.4914, 0.4822, 0.4465], np.float32)
STD = np.array([0.2023, 0.1994, 0.2010], np.float32)


def load(data_dir):
    """Return {"train": (images, labels), "test": (images, labels)}; images uint8 (n, 32, 32, 3), labels int32 (n,).

    Args:
        data_dir: Folder of tensorflow-datasets that holds cifar10 or where it may be downloaded to (None: its
            default), or the path of an npz file with the images as JPEG (`train_jpeg`, `train_size`, `train_label`
            and the same for `test`), which needs no TensorFlow.
    """
    if data_dir and pathlib.Path(data_dir).suffix == ".npz":
        return {split: _from_npz(data_dir, split) for split in ("train", "test")}
    return {split: _from_tfds(data_dir, split) for split in ("train", "test")}


def _from_npz(path, split):
    from PIL import Image

    with np.load(path) as store:
        blob, sizes, labels = (store[f"{split}_{part}"] for part in ("jpeg", "size", "label"))
    ends = np.cumsum(sizes, dtype=np.int64)
    images = [
        np.asarray(Image.open(io.BytesIO(blob[start:end].tobytes())))
        for start, end in zip(ends - sizes, ends, strict=True)
    ]
    return np.stack(images), labels.astype(np.int32)


def _from_tfds(data_dir, split):
    import tensorflow_datasets as tfds

    examples = tfds.load("cifar10", split=split, data_dir=data_dir, batch_size=-1)
    examples = {name: np.asarray(values) for name, values in examples.items()}
    order = np.argsort(examples["id"])  # the order in which the images were numbered, whatever the files' order
    return examples["image"][order], examples["label"][order].astype(np.int32)


def hold_out(data, count):
    """Return what `load` returns, but with the last `count` training images, left out of training, for a test set.

    Settings are chosen by such images. The test set then says how good the chosen ones are.
    """
    images, labels = data["train"]
    if not 0 < count < len(images):
        raise ValueError(f"Some of the {len(images)} training images must be held out, not all. Received: {count}")
    return {"train": (images[:-count], labels[:-count]), "test": (images[-count:], labels[-count:])}


def normalize(images):
    """Return uint8 images as float32 of about zero mean and unit variance per channel."""
    return (images.astype(np.float32) / 255 - MEAN) / STD


def resized(images, size):
    """Return uint8 images of another size, averaged bilinearly."""
    if images.shape[1] == size:
        return images
    from PIL import Image

    bilinear = Image.Resampling.BILINEAR
    return np.stack([np.asarray(Image.fromarray(image).resize((size, size), bilinear)) for image in images])


class TrainingBatches(EpochBatches):
    """Shuffled, randomly cropped and flipped batches of square images; the last, incomplete one is dropped.

    The crops are as large as the images, with an eighth of zeros around these: 4 pixels around 32.

    Batch `step` of an epoch depends on seed, epoch and step alone, so a resumed training sees what an uninterrupted
    one would have seen, and several processes, each of which takes its part, what one would have.
    """

    def __init__(self, images, labels, batch_size, seed, first_epoch=0, part=0, parts=1):
        super().__init__()
        self.images, self.labels = images, labels
        self.batch_size, self.seed = batch_size, seed
        self.part = slice(part * batch_size // parts, (part + 1) * batch_size // parts)
        self.begin(first_epoch)

    def __len__(self):
        return len(self.images) // self.batch_size

    def __getitem__(self, step):
        chosen = self.order[step * self.batch_size : (step + 1) * self.batch_size]
        random = self._random(1 + step)
        size = self.images.shape[1]
        around = size // 8
        offsets = random.integers(0, 2 * around + 1, size=(len(chosen), 2))
        flips = random.random(len(chosen)) < 0.5
        crops = np.pad(self.images[chosen], ((0, 0), (around, around), (around, around), (0, 0)))
        batch = np.stack([c[y : y + size, x : x + size] for c, (y, x) in zip(crops, offsets, strict=True)])
        batch[flips] = batch[flips, :, ::-1]
        return normalize(batch[self.part]), self.labels[chosen[self.part]]

    def begin(self, epoch):
        self.epoch = epoch
        self.order = self._random(0).permutation(len(self.images))

    def _random(self, step):
        return np.random.default_rng([self.seed, self.epoch, step])
