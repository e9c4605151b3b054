"""ImageNet from tensorflow-datasets, for networks of keras.applications. Needs TensorFlow, and the data set."""

import sys

import keras

SIDE = 224  # pixels


def load(data_dir, application, batch_size, seed):
    """Return (function from an epoch to its training batches, arguments of `fit` for validation).

    Training images are cropped at random from a side of 256 pixels and flipped, others are cropped in the middle.

    Args:
        data_dir: Folder of tensorflow-datasets that holds imagenet2012.
        application: Name of a network of keras.applications, whose module knows how its pixels are scaled.
        batch_size: Images in a batch.
        seed: Of the order and the crops.
    """
    import tensorflow as tf
    import tensorflow_datasets as tfds

    scale = sys.modules[getattr(keras.applications, application).__module__].preprocess_input

    def resized(image):
        shape = tf.cast(tf.shape(image)[:2], tf.float32)
        return tf.image.resize(image, tf.cast(tf.round(shape * 256 / tf.reduce_min(shape)), tf.int32))

    def training_image(image, label):
        image = tf.image.random_crop(resized(image), (SIDE, SIDE, 3), seed=seed)
        return scale(tf.image.random_flip_left_right(image, seed=seed)), label

    def test_image(image, label):
        return scale(tf.image.resize_with_crop_or_pad(resized(image), SIDE, SIDE)), label

    settings = {"data_dir": data_dir, "as_supervised": True}

    def batches(epoch):
        images = tfds.load("imagenet2012", split="train", shuffle_files=True, **settings)
        images = images.shuffle(10_000, seed=seed + epoch)
        images = images.map(training_image, num_parallel_calls=tf.data.AUTOTUNE)
        return images.batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)

    images = tfds.load("imagenet2012", split="validation", **settings)
    images = images.map(test_image, num_parallel_calls=tf.data.AUTOTUNE)
    return batches, {"validation_data": images.batch(batch_size).prefetch(tf.data.AUTOTUNE)}
