"""ImageNet from tensorflow-datasets, or pictures of noise in its format. Needs TensorFlow, on every Keras backend."""

import hashlib
import os
import pathlib
import sys
import time

import keras
import numpy as np

SIDE = 224  # pixels
CLASSES = 1000
VERSION = "5.1.0"  # of the data set, in tensorflow-datasets
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


def normalize(pixels):
    """Return pixels in [0, 255] as float32 of about zero mean and unit variance per channel."""
    return (pixels / 255 - MEAN) / STD


def scaling(application):
    """Return the function that scales pixels for a network of keras.applications, by its name."""
    return sys.modules[getattr(keras.applications, application).__module__].preprocess_input


def load(data_dir, scale, batch_size, seed, cache_dir=None, part=0, parts=1, label=lambda label: label):
    """Return (function from an epoch to its training batches, arguments of `fit` for validation).

    All images are scaled to a smaller side of 256 pixels. Those for training are crops of 8 to 100 % of the area, with
    sides in a ratio of 3/4 to 4/3, that are scaled again and flipped at random; others are cropped in the middle. Order
    and crops follow from the seed and the epoch that the data are asked for; epochs after it get others, and not those
    that they would get if asked for themselves.

    Args:
        data_dir: Folder of tensorflow-datasets that holds imagenet2012.
        scale: Function of the pixels, in [0, 255].
        batch_size: Images in a batch, of all processes.
        seed: Of the order and the crops.
        cache_dir: Folder for the decoded images, uint8 with a smaller side of 256 pixels: some 350 GB for ImageNet,
            written while the first epoch runs; one that is killed has to do it again. For one training at a time.
            None: decode in every epoch.
        part, parts: Which of several processes the batches are for; each gets its part of them.
        label: Function of the labels.
    """
    import tensorflow as tf
    import tensorflow_datasets as tfds

    versions = sorted(pathlib.Path(data_dir or tfds.core.constants.DATA_DIR, "imagenet2012").glob("*.*.*"))
    if not versions:
        raise ValueError(f"`data_dir` must hold imagenet2012 as tensorflow-datasets prepares it. Received: {data_dir}")
    builder = tfds.builder_from_directory(versions[-1])

    def resized(image):
        shape = tf.cast(tf.shape(image)[:2], tf.float32)
        image = tf.image.resize(image, tf.cast(tf.round(shape * 256 / tf.reduce_min(shape)), tf.int32))
        return tf.saturate_cast(tf.round(image), tf.uint8)

    def training_image(found, random):
        image, number = found
        begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
            tf.shape(image),
            tf.zeros((1, 0, 4)),
            seed=(random, 0),
            min_object_covered=0.0,
            aspect_ratio_range=(3 / 4, 4 / 3),
            area_range=(0.08, 1.0),
            use_image_if_no_bounding_boxes=True,
        )
        image = tf.image.resize(tf.slice(image, begin, size), (SIDE, SIDE))
        return scale(tf.image.stateless_random_flip_left_right(image, seed=(random, 1))), label(number)

    def test_image(image, number):
        return scale(tf.cast(tf.image.resize_with_crop_or_pad(image, SIDE, SIDE), tf.float32)), label(number)

    def cache(split):
        """Return where the images of a split are cached: elsewhere for other data or another number of processes."""
        facts = builder.info.splits[split]
        what = f"{versions[-1].resolve()} {facts.num_examples} {facts.num_bytes}"
        return pathlib.Path(cache_dir, f"{split}{part}of{parts}_{hashlib.sha256(what.encode()).hexdigest()[:8]}")

    if cache_dir is not None:
        pathlib.Path(cache_dir).mkdir(parents=True, exist_ok=True)
        for split in ("train", "validation"):  # a killed process leaves a lock, and parts of files of no use
            for kind in ("lockfile", "*tempstate*"):
                for path in pathlib.Path(cache_dir).glob(f"{cache(split).name}_*.{kind}"):
                    path.unlink(missing_ok=True)

    def images(split):
        found = builder.as_dataset(split=split).shard(parts, part)
        found = found.map(lambda x: (resized(x["image"]), x["label"]), num_parallel_calls=tf.data.AUTOTUNE)
        return found if cache_dir is None else found.cache(str(cache(split)))

    def batched(found, function, drop_remainder):
        found = found.map(function, num_parallel_calls=tf.data.AUTOTUNE)
        return found.batch(batch_size // parts, drop_remainder).prefetch(tf.data.AUTOTUNE)

    def batches(epoch):
        shuffled = images("train").shuffle(10_000, seed=seed + epoch)
        random = tf.data.Dataset.random(seed + epoch, rerandomize_each_iteration=True)
        return batched(tf.data.Dataset.zip((shuffled, random)), training_image, True)

    return batches, {"validation_data": batched(images("validation"), test_image, False)}


def write_synthetic(data_dir, train, validation, seed=0):
    """Write pictures of noise as tensorflow-datasets stores ImageNet: JPEG in TFRecords. Their colour tells the class.

    The folder appears once it is complete.

    Args:
        data_dir: Folder for them, without an imagenet2012.
        train, validation: How many.
        seed: Of sizes, classes and pixels.
    """
    import tensorflow as tf
    import tensorflow_datasets as tfds

    def pictures(count, seed):
        random = np.random.default_rng(seed)
        for number in range(count):
            height, width = random.integers(240, 500, 2)
            label = int(random.integers(CLASSES))
            coarse = random.normal(128 + 100 * np.sin([label, 2 * label, 3 * label]), 40, (height // 8, width // 8, 3))
            pixels = np.clip(coarse, 0, 255).astype(np.uint8).repeat(8, 0).repeat(8, 1)
            yield {"file_name": f"{number}.JPEG", "image": tf.io.encode_jpeg(pixels).numpy(), "label": label}

    features = tfds.features.FeaturesDict(
        {
            "file_name": tfds.features.Text(),
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(num_classes=CLASSES),
        }
    )
    unfinished = pathlib.Path(data_dir, f".imagenet2012-{os.getpid()}")
    folder = unfinished / VERSION
    folder.mkdir(parents=True)
    splits = []
    for number, (split, count) in enumerate({"train": train, "validation": validation}.items()):
        records = [features.serialize_example(example) for example in pictures(count, (seed, number))]
        with tf.io.TFRecordWriter(str(folder / f"imagenet2012-{split}.tfrecord-00000-of-00001")) as writer:
            for record in records:
                writer.write(record)
        splits.append(tfds.core.SplitInfo(name=split, shard_lengths=[count], num_bytes=sum(map(len, records))))
    tfds.folder_dataset.write_metadata(
        data_dir=str(folder),
        features=features,
        split_infos=splits,
        filename_template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
    )
    os.replace(unfinished, pathlib.Path(data_dir, "imagenet2012"))


def wait_for_synthetic(data_dir, seconds=600):
    """Wait until another process has written the pictures.

    Raises:
        TimeoutError: It has not in this time.
    """
    deadline = time.monotonic() + seconds
    while not pathlib.Path(data_dir, "imagenet2012").exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"Process 0 should have written {data_dir}/imagenet2012 within {seconds} seconds.")
        time.sleep(0.1)
