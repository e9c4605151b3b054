"""What MaskStatistics writes down, against a calculation by hand."""

import csv
import importlib.util
import io
import sys

import keras
import numpy as np
import pytest
from test_recycling import Stop, fit, small
from test_training import compiled

from keras_mpt.callbacks import IterativeWeightRecycling, MaskStatistics, SparsitySchedule
from keras_mpt.layers import MPTDense
from keras_mpt.models import mpt_layers, mpt_layers_by_path
from keras_mpt.quantizers import KernelQuantizer
from support import reference
from support.layer_contract import numpy
from support.networks import X, Y, nested_and_shared


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


class Scores(keras.callbacks.Callback):
    """Keeps the scores and kernels of the layers at the ends of epochs."""

    def on_train_begin(self, logs=None):
        self.seen = [self._state()]

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append(self._state())
        self.logs = dict(logs)

    def _state(self):
        layers = mpt_layers_by_path(self.model).items()
        return {path: (numpy(layer.scores), numpy(layer.frozen_kernel), int(layer.kept)) for path, layer in layers}


def test_against_a_calculation_by_hand(tmp_path):
    model, scores = compiled(nested_and_shared()), Scores()
    statistics = MaskStatistics(tmp_path / "folder" / "masks.csv", bins=5)
    history = model.fit(X, X[:, 0, 0, 0] > 0, 8, 3, 0, [statistics, IterativeWeightRecycling(0.3, 1), scores]).history
    rows = rows_of(tmp_path / "folder" / "masks.csv")
    assert [(int(row["epoch"]), row["layer"]) for row in rows] == [
        (e, path) for e in range(3) for path in scores.seen[0]
    ]
    assert len(scores.seen[0]) == 4 and any(path.startswith("nested/") for path in scores.seen[0])
    flips, size = np.zeros(3), 0
    for path in scores.seen[0]:
        masks = [reference.mask(state[path][0], state[path][2]) for state in scores.seen]
        size += masks[0].size
        for epoch in range(3):
            (row,) = (row for row in rows if row["layer"] == path and int(row["epoch"]) == epoch)
            values, frozen, kept = scores.seen[epoch + 1][path]
            differ = np.abs(masks[epoch + 1] - masks[epoch]).sum()
            flips[epoch] += differ
            mask = masks[epoch + 1]
            expected = {
                "flip_ratio": differ / mask.size,
                "sparsity": (mask == 0).sum() / mask.size,
                "alpha": (np.abs(frozen) * mask).sum() / kept,
                "scores_min": values.min(),
                "scores_max": values.max(),
            }
            for name, value in expected.items():
                np.testing.assert_allclose(float(row[name]), value, rtol=1e-5)
                if name in ("flip_ratio", "sparsity", "alpha"):
                    assert history[f"{name}/{path}"][epoch] == float(row[name])
            counts = [int(row[f"scores_bin_{i}"]) for i in range(1, 6)]
            width = (values.max() - values.min()) / 5
            inner = (values >= values.min() + width * 1.001) & (values < values.min() + width * 1.999)
            assert sum(counts) == values.size and counts[1] >= inner.sum()
    np.testing.assert_allclose(history["mask_flip_ratio"], flips / size)
    assert flips.all() and history["mask_sparsity"] == pytest.approx([0.5] * 3, abs=0.01)
    assert {"loss", "mask_flip_ratio", "mask_sparsity"} == set(scores.logs)


def test_edge_popup_has_no_alpha(tmp_path):
    layer = MPTDense(2, kernel_quantizer=None, seed=0, name="last")
    model = compiled(keras.Sequential([keras.Input(X.shape[1:]), keras.layers.Flatten(), layer]))
    fit(model, [MaskStatistics(tmp_path / "masks.csv")], 1)
    assert "flip_ratio/last" in model.history.history and "alpha/last" not in model.history.history
    assert [row["alpha"] for row in rows_of(tmp_path / "masks.csv")] == [""]


def test_a_resumed_training_goes_on_with_the_file(tmp_path):
    """Also behind a schedule, whose changes at the beginning of an epoch do not count then."""

    def run(folder, *more):
        model = compiled(small())
        backup = keras.callbacks.BackupAndRestore(folder / "backup", delete_checkpoint=False)
        behind = MaskStatistics(folder / "behind.csv")
        both = [MaskStatistics(folder / "masks.csv"), SparsitySchedule(0.9, epochs=3), behind]
        return fit(model, [*both, backup, *more], 4)

    run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", Stop(1))
    with (tmp_path / "killed" / "masks.csv").open("a") as file:
        file.write("2,dense,1,2,3\n\n1")  # what a kill before the backup leaves
    run(tmp_path / "killed")
    names = {layer.name for layer in mpt_layers(compiled(small()))}
    assert len(names) == 2
    flips = {}
    for name in ("masks.csv", "behind.csv"):
        killed, whole = (rows_of(tmp_path / folder / name) for folder in ("killed", "whole"))
        for ours, theirs in zip(killed, whole, strict=True):  # Keras numbers the layers' names
            assert {**ours, "layer": ""} == {**theirs, "layer": ""}
        flips[name] = np.array([float(row["flip_ratio"]) for row in whole if row["epoch"] == "2"])
    removed = 0.4 * 7 / 27  # from epoch 1 to epoch 2
    assert np.all(flips["masks.csv"] > removed - 0.02) and np.any(flips["behind.csv"] < flips["masks.csv"])


@pytest.mark.parametrize("first_epoch", [0, 1])
def test_a_file_of_something_else_is_not_touched(first_epoch, tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("epoch,loss\n0,1.5\n")
    with pytest.raises(ValueError, match="`path` must be a file that this callback wrote"):
        fit(compiled(small()), [MaskStatistics(path)], 2, initial_epoch=first_epoch)
    assert path.read_text() == "epoch,loss\n0,1.5\n"


@pytest.mark.parametrize("first_epoch", [0, 1])
def test_an_empty_file_is_filled(first_epoch, tmp_path):
    path = tmp_path / "masks.csv"
    path.touch()
    fit(compiled(small()), [MaskStatistics(path)], 2, initial_epoch=first_epoch)
    assert {int(row["epoch"]) for row in rows_of(path)} == set(range(first_epoch, 2))


def test_another_training_may_have_other_bins(tmp_path):
    path = tmp_path / "masks.csv"
    fit(compiled(small()), [MaskStatistics(path, bins=3)], 2)
    fit(compiled(small()), [MaskStatistics(path, bins=5)], 1)
    assert {row["epoch"] for row in rows_of(path)} == {"0"} and "scores_bin_5" in rows_of(path)[0]


def loop(model, callback, epoch=0):
    """Do in one epoch what `fit` does but for the training."""
    callbacks = keras.callbacks.CallbackList([callback], model=model)
    callbacks.on_train_begin()
    callbacks.on_epoch_begin(epoch)
    callbacks.on_epoch_end(epoch)
    callbacks.on_train_end()


def test_a_resumed_training_has_the_bins_of_its_file(tmp_path):
    path, model = tmp_path / "masks.csv", compiled(small())
    loop(model, MaskStatistics(path, bins=3))
    before = path.read_text()
    with pytest.raises(ValueError, match="`path` must be a file that this callback wrote"):
        loop(model, MaskStatistics(path, bins=5), epoch=1)
    assert path.read_text() == before


def test_a_second_training_begins_the_file_anew(tmp_path):
    statistics, model = MaskStatistics(tmp_path / "masks.csv"), compiled(small())
    for _ in range(2):
        loop(model, statistics)
    assert [(row["epoch"], row["layer"]) for row in rows_of(tmp_path / "masks.csv")] == [
        ("0", layer.name) for layer in mpt_layers(model)
    ]


def test_two_of_them_do_not_write_to_one_file(tmp_path):
    path = tmp_path / "masks.csv"
    (tmp_path / "link").symlink_to(tmp_path)
    statistics, model = MaskStatistics(path), compiled(small())
    for other in (statistics, MaskStatistics(path), MaskStatistics(tmp_path / "link" / "masks.csv")):
        with pytest.raises(ValueError, match="`path` must be the file of one MaskStatistics .*masks.csv twice"):
            fit(model, [statistics, other], 2)
    assert not path.exists()
    fit(model, [statistics], 2)
    loop(model, statistics, epoch=2)  # in which `model.history` is still that of `fit`
    assert [int(row["epoch"]) for row in rows_of(path)] == [0, 0, 1, 1, 2, 2]


def test_a_loop_after_fit_leaves_the_history_of_fit():
    model = compiled(small())
    history = fit(model, [MaskStatistics()], 2).history
    before = {name: [*values] for name, values in history.history.items()}
    loop(model, MaskStatistics(), epoch=2)
    loop(model, MaskStatistics())
    assert history.history == before and history is model.history
    assert {len(values) for values in fit(model, [MaskStatistics()], 1).history.history.values()} == {1}


def test_two_of_them_are_once_in_the_history(tmp_path):
    first, second = MaskStatistics(tmp_path / "first.csv"), MaskStatistics(tmp_path / "second.csv")
    history = fit(compiled(small()), [first, second, MaskStatistics()], 3).history.history
    assert {len(values) for values in history.values()} == {3}
    (name,) = {row["layer"] for row in rows_of(first.path)} - {rows_of(first.path)[0]["layer"]}
    rows = [float(row["flip_ratio"]) for row in rows_of(first.path) if row["layer"] == name]
    assert history[f"flip_ratio/{name}"] == rows and rows_of(first.path) == rows_of(second.path)


def test_names_of_layers_may_have_any_letters(tmp_path, monkeypatch):
    """Also where the platform's encoding lacks them, such as that of Windows."""
    monkeypatch.setattr(io, "text_encoding", lambda encoding, stacklevel=2: encoding or "ascii")
    model = keras.Sequential([keras.Input((3,)), MPTDense(2, seed=0, name="шар")])
    for epoch in range(2):
        loop(model, MaskStatistics(tmp_path / "masks.csv"), epoch)
    assert (tmp_path / "masks.csv").read_text(encoding="utf-8").count(",шар,") == 2


def test_infinite_scores_are_in_no_bin(tmp_path):
    model = compiled(small())
    layer = mpt_layers(model)[0]
    scores = numpy(layer.scores)
    scores[0, 0] = np.inf
    layer.scores.assign(scores)
    loop(model, MaskStatistics(tmp_path / "masks.csv", bins=3))
    row = rows_of(tmp_path / "masks.csv")[0]
    assert sum(int(row[f"scores_bin_{i}"]) for i in (1, 2, 3)) == scores.size - 1
    assert np.float32(row["scores_max"]) == scores[np.isfinite(scores)].max()


@keras.saving.register_keras_serializable(package="test_statistics")
class Doubled(KernelQuantizer):
    def __init__(self, alpha=2.0):
        self.alpha = alpha

    def __call__(self, kernel, mask, kept):
        return self.alpha * kernel * mask


def test_a_quantizer_of_ones_own_may_have_an_alpha():
    model = keras.Sequential([keras.Input((4,)), MPTDense(3, kernel_quantizer=Doubled(), seed=0, name="own")])
    x, y = np.ones((8, 4), "float32"), np.zeros(8, "int32")
    history = compiled(model).fit(x, y, verbose=0, callbacks=[MaskStatistics()]).history
    assert "flip_ratio/own" in history and "alpha/own" not in history


def test_bad_bins():
    for bins in (0, -1, 1.5, True, None):
        with pytest.raises(ValueError, match="`bins` must be an integer > 0"):
            MaskStatistics(bins=bins)


def test_a_loop_without_a_history(tmp_path):
    model = compiled(small())
    callbacks = keras.callbacks.CallbackList([MaskStatistics(tmp_path / "masks.csv")], model=model)
    callbacks.on_train_begin()
    callbacks.on_epoch_begin(0)
    model.train_on_batch(X, Y)
    callbacks.on_epoch_end(0)
    assert len((tmp_path / "masks.csv").read_text().splitlines()) == 1 + len(mpt_layers(model))


def test_tensorboard_needs_tensorflow(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="`log_dir` needs TensorFlow"):
        MaskStatistics(log_dir=tmp_path)
    MaskStatistics(tmp_path / "masks.csv")


def test_a_file_instead_of_a_folder_for_logs(tmp_path):
    (tmp_path / "logs").touch()
    with pytest.raises(NotADirectoryError, match="`log_dir` must be that of a folder. Received: .*logs.*, a file"):
        MaskStatistics(log_dir=tmp_path / "logs")


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="TensorBoard is not installed")
@pytest.mark.tensorflow_only  # to save time: nothing here depends on the backend
def test_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = fit(compiled(small()), [MaskStatistics(log_dir=tmp_path)], 2)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert len(list(tmp_path.iterdir())) == 1
    names = [layer.name for layer in mpt_layers(model)]
    for kind in ("flip_ratio", "sparsity", "alpha"):
        for name in names:
            written = [(event.step, tensor(event)) for event in events.Tensors(f"{kind}/{name}")]
            assert written == [(i, np.float32(v)) for i, v in enumerate(model.history.history[f"{kind}/{name}"])]
    assert len(events.Tensors(f"scores/{names[0]}")) == 2
    assert "tensorflow" in sys.modules


def tensor(event):
    import tensorflow as tf

    return tf.make_ndarray(event.tensor_proto)


def test_a_model_without_masks_is_refused(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="`model` must have MPT layers"):
        model.fit(np.ones((4, 2)), np.ones((4, 1)), verbose=0, callbacks=[MaskStatistics(tmp_path / "masks.csv")])
    assert not (tmp_path / "masks.csv").exists()
