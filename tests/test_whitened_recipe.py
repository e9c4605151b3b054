"""The recipe of networks for images of any size: what each of its ways of training gives."""

import csv
import sys

import keras
import numpy as np
import pytest
from absl.flags import FLAGS

import keras_mpt
from support.small_images import small_cifar10

pytestmark = pytest.mark.slow_with("jax", "torch")
SMALL = ["--width=0.0625", "--batch_size=16", "--seed=3"]


@pytest.fixture
def recipe(scripts, tmp_path, monkeypatch):
    """Return the script, and a function that runs it in this process in a folder of a name."""
    import whitened_conv6

    data = small_cifar10(tmp_path / "images.npz")

    def run(name, *more, sizes="16:2"):
        folder = tmp_path / name
        given = ["recipe", f"--data_dir={data}", f"--output_dir={folder}", f"--sizes={sizes}", *SMALL, *more]
        monkeypatch.setattr(sys, "argv", given)
        FLAGS.unparse_flags()
        FLAGS(given)
        whitened_conv6.main(None)
        return folder

    return whitened_conv6, run


def test_targets_follow_the_mirror(recipe):
    """Of one pixel that is white on the left only, the batch and its labels must tell the same."""
    script, _ = recipe
    FLAGS.unparse_flags()
    FLAGS(["recipe", "--output_dir=unused", "--batch_size=4", "--sizes=16:2"])
    images = np.zeros((12, 16, 16, 3), np.uint8)
    images[:, :, :8] = 255
    targets = np.stack([np.eye(10)[[0] * 12], np.eye(10)[[1] * 12]])
    seen = []
    for epoch in (0, 1):
        batches = script.Batches(images, targets, epoch)
        for step in range(3):
            pictures, labels = batches[step]
            left_is_white = pictures[:, 8, 4, 0] > pictures[:, 8, 11, 0]
            np.testing.assert_array_equal(labels.argmax(-1), 1 - left_is_white)
            seen += [*left_is_white]
    assert sum(seen) == 12  # each image as it is in one of the epochs, mirrored in the other


def test_cutout_erases_a_square_of_each_image(recipe):
    script, _ = recipe
    FLAGS.unparse_flags()
    FLAGS(["recipe", "--output_dir=unused", "--batch_size=50", "--sizes=20:1", "--cutout=0.25"])
    batches = script.Batches(np.full((50, 20, 20, 3), 200, np.uint8), np.zeros((2, 50, 10)), 0)
    pictures, _ = batches[0]
    for picture in pictures:
        erased = (picture == 0).all(axis=-1)
        rows, columns = np.flatnonzero(erased.any(axis=1)), np.flatnonzero(erased.any(axis=0))
        assert 2 <= len(rows) <= 5 and 2 <= len(columns) <= 5  # 5 pixels, unless the border cuts them off
        assert erased.sum() == len(rows) * len(columns) and np.all(picture[~erased] > 0)
    np.testing.assert_array_equal(batches[0][0], pictures)


def test_images_grow_from_epoch_to_epoch(recipe):
    """`fit` of TensorFlow must take batches of another size in the second epoch."""
    script, _ = recipe
    FLAGS.unparse_flags()
    FLAGS(["recipe", "--output_dir=unused", "--batch_size=4", "--sizes=16:1,20:1"])
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    batches = script.Batches(images, np.stack(2 * [np.eye(10)[:8]]), 0)
    model = keras.Sequential([keras.Input((None, None, 3)), keras.layers.GlobalAveragePooling2D()])
    model.add(keras.layers.Dense(10))
    model.compile("sgd", "mse")
    begin = script.training.BeginEpochs(batches)
    model.fit(batches.for_fit(), epochs=2, verbose=0, shuffle=False, callbacks=[begin])
    assert batches[0][0].shape == (4, 20, 20, 3)
    assert int(keras.ops.convert_to_numpy(model.optimizer.iterations)) == 4


def test_a_preset_may_be_the_teacher(recipe):
    script, _ = recipe
    preset = keras_mpt.zoo.get_preset("whitened_conv6_half_mpt32_s50_recycled")
    images = np.random.default_rng(0).random((2, 32, 32, 3)).astype("float32")
    teacher = script.trained_network(preset.name)
    assert teacher.input_shape[1:] == (None, None, 3)
    np.testing.assert_allclose(teacher.predict(images), preset.model().predict(images), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("network", ["whitened_conv6", "resnet20"])
def test_jackpots_and_pupils_of_a_dense_network(recipe, network):
    script, run_script = recipe

    def run(name, *more):
        return run_script(name, f"--network={network}", "--width=0.25", *more, sizes="16:1,20:1")

    base = run("dense", "--dense", "--optimizer=sgd", "--learning_rate=0.05", "--weight_decay=5e-4")
    dense = keras.models.load_model(base / "model.keras")
    still = run("still", "--dense", f"--pretrained={base / 'model.keras'}", "--optimizer=sgd", "--learning_rate=1e-30")
    still = keras.models.load_model(still / "model.keras")
    for before, then in zip(dense.trainable_variables, still.trainable_variables, strict=True):
        np.testing.assert_array_equal(before, then)
    for kind, quantizer in (("binary", "scaled_sign"), ("lottery", "identity")):
        folder = run(kind, f"--jackpot={base / 'model.keras'}", "--sparsity=0.75", f"--kernel_quantizer={quantizer}")
        ticket = keras_mpt.load_ticket(folder / "ticket.mpt")
        for layer in keras_mpt.models.mpt_layers(ticket):
            trained = keras.ops.convert_to_numpy(dense.get_layer(layer.name).kernel)
            kernel, mask = (keras.ops.convert_to_numpy(part) for part in (layer.kernel, layer.subnet_mask))
            expected = trained if kind == "lottery" else np.sign(trained) * np.abs(trained[mask > 0]).mean()
            np.testing.assert_allclose(kernel, mask * expected, rtol=1e-5)

    teacher, losses = base / "checkpoint.keras", {}
    for name, more in {"taught": [f"--teacher={teacher}", "--label_smoothing=0"], "alone": []}.items():
        folder = run(name, *more)
        assert keras_mpt.load_ticket(folder / "ticket.mpt")
        with (folder / "log.csv").open(newline="") as file:
            losses[name] = [float(row["loss"]) for row in csv.DictReader(file)]
    assert losses["taught"] != losses["alone"]
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    FLAGS(["recipe", f"--teacher={teacher}", "--output_dir=unused", "--sizes=16:1"])
    plain, mirrored = script.taught(images)
    twice, again = script.taught(images[:, :, ::-1])
    np.testing.assert_allclose(np.stack([plain, mirrored]), np.stack([again, twice]), atol=1e-6)
    np.testing.assert_allclose(plain.sum(-1), 1, rtol=1e-5)


@pytest.mark.slow
def test_recycled_weights_are_in_the_ticket(recipe):
    _, run = recipe
    folder = run("recycled", "--recycle_rate=0.7", "--recycle_every=1", sizes="16:2")
    stopped = run("stopped", "--recycle_rate=0.7", "--recycle_every=1", "--stop_after=1", sizes="16:2")
    assert not (stopped / "ticket.mpt").exists()
    run("stopped", "--recycle_rate=0.7", "--recycle_every=1", sizes="16:2")
    whole, resumed = (keras_mpt.tickets.Ticket.read(place / "ticket.mpt") for place in (folder, stopped))
    assert any(entry["kernel"] and entry["kernel"]["changes"] for entry in whole.layers.values())
    assert keras_mpt.analysis.overlap(folder / "ticket.mpt", stopped / "ticket.mpt").total.jaccard == 1.0
    assert (folder / "log.csv").read_text() == (stopped / "log.csv").read_text()
    assert whole.size == pytest.approx(resumed.size, abs=8)
