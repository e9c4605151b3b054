"""Statistics of the masks during training."""

import csv
import importlib.util
import os

import keras
import numpy as np

from keras_mpt.arguments import check_count, check_path
from keras_mpt.callbacks.checks import check_built
from keras_mpt.files import replacing
from keras_mpt.layers.subnet import named_subnets
from keras_mpt.models import mpt_layers_by_path
from keras_mpt.ops import to_numpy

_SCALARS = ("flip_ratio", "sparsity", "alpha")
_COLUMNS = ["epoch", "layer", *_SCALARS, "scores_min", "scores_max"]


class MaskStatistics(keras.callbacks.Callback):
    """Record after each epoch how much each layer's mask changed.

    For each MPT layer with the mask M at the end of this epoch, M' at its beginning, the frozen kernel W and the
    scores S:

    - `flip_ratio`: `mean(M != M')`, the fraction of weights that came or went;
    - `sparsity`: `1 - mean(M)`;
    - `alpha`: `sum(|W| * M) / sum(M)`, for layers with `kernel_quantizer="scaled_sign"`;
    - a histogram of S: counts in bins of equal width between its smallest and its largest number.

    `history` has them as `"flip_ratio/conv1"` and so on, by the paths of the layers; several kernels of a layer add
    their names. `logs`, which other callbacks, the progress bar and `history` show, get `mask_flip_ratio` and
    `mask_sparsity` over all layers together. Put this callback first: then later ones see these numbers, and changes of
    masks that they make when an epoch begins count, such as those of `SparsitySchedule`. In an epoch that
    `BackupAndRestore(save_freq=...)` resumes in its midst, changes before that do not count.

    Args:
        path: CSV file with one row per epoch and layer, UTF-8. A resumed training appends to it, and replaces the rows
            of repeated epochs. None: no file.
        log_dir: Folder of logs for TensorBoard, which needs TensorFlow on every backend. None: no logs.
        bins: Number of bins of the histograms in the CSV file.

    Raises:
        ValueError: `bins` is no integer > 0; when training begins, the model has no MPT layer, or one that is not
            built, `path` is a file with something else, or another such callback of the training writes to it.
        IsADirectoryError: `path` is a folder.
        NotADirectoryError: `log_dir` is a file.
        ImportError: `log_dir` is given, and TensorFlow is not installed.

    Examples:
        >>> statistics = MaskStatistics("masks.csv")
        >>> history = model.fit(images, labels, epochs=10, callbacks=[statistics]).history
        >>> history["flip_ratio/conv1"]
    """

    def __init__(self, path=None, log_dir=None, bins=20):
        super().__init__()
        check_count("bins", bins)
        if log_dir is not None and importlib.util.find_spec("tensorflow") is None:
            raise ImportError(
                "`log_dir` needs TensorFlow to write for TensorBoard. Use `path` for a CSV file, or install it. "
                f"Received: log_dir={str(log_dir)!r}"
            )
        self.path = None if path is None else check_path("path", path)
        if self.path is not None and self.path.is_dir():
            raise IsADirectoryError(f"`path` must be that of a file. Received: path={path!r}, a folder")
        self.log_dir, self.bins = None if log_dir is None else check_path("log_dir", log_dir), bins
        if self.log_dir is not None and self.log_dir.is_file():
            raise NotADirectoryError(f"`log_dir` must be that of a folder. Received: log_dir={log_dir!r}, a file")
        self._masks = self._writer = self._history = None

    def on_train_begin(self, logs=None):
        if not mpt_layers_by_path(self.model):
            raise ValueError(
                f"`model` must have MPT layers whose masks can be counted. Received: {self.model.name!r} without one"
            )
        check_built(self, mpt_layers_by_path(self.model).values())
        self._check_alone()
        self._masks = self._writer = None

    def _check_alone(self):
        """Raise ValueError if this callback, or another one in the same list, writes to the file already."""
        history = self._history_of_fit()
        if self.path is None or history is None:
            return
        files, path = vars(history).setdefault("files_of_mask_statistics", []), os.path.realpath(self.path)
        if path in files:
            raise ValueError(f"`path` must be the file of one MaskStatistics in a list. Received: {self.path} twice")
        files.append(path)

    def on_epoch_begin(self, epoch, logs=None):
        if self._masks is None:
            self._history = self._history_of_fit()
            if self.path is not None:
                self._forget_from(epoch)
        # Not those of the last end: a resumed training does not know what callbacks have changed since.
        self._masks = {path: _mask(subnet) for path, subnet in self._subnets()}

    def on_epoch_end(self, epoch, logs=None):
        flips = kept = size = 0
        rows, scores = {}, {}
        for path, subnet in self._subnets():
            mask, before = _mask(subnet), self._masks[path]
            rows[path] = {
                "flip_ratio": float(np.mean(mask != before)),
                "sparsity": float(1 - np.mean(mask)),
                "alpha": _alpha(subnet),
            }
            scores[path] = to_numpy(subnet.scores)
            flips += np.count_nonzero(mask != before)
            kept += np.count_nonzero(mask)
            size += mask.size
        if logs is not None and size:
            logs["mask_flip_ratio"], logs["mask_sparsity"] = flips / size, 1 - kept / size
        self._write_history(rows)
        if self.path is not None:
            self._write_csv(epoch, rows, scores)
        if self.log_dir is not None:
            self._write_tensorboard(epoch, rows, scores)

    def _subnets(self):
        layers = mpt_layers_by_path(self.model).items()
        return [pair for path, layer in layers for pair in named_subnets(path, layer)]

    def on_train_end(self, logs=None):
        if self._writer is not None:
            self._writer.close()

    def _history_of_fit(self):
        """Return what this call of `fit` will return; None in a loop of one's own, also after another `fit`."""
        history = getattr(self.model, "history", None)
        return None if getattr(history, "epoch", None) else history

    def _write_history(self, rows):
        if self._history is None:
            return
        for path, row in rows.items():
            for name, value in row.items():
                if value is not None:  # in the place of what another such callback has written for the epoch
                    self._history.history.setdefault(f"{name}/{path}", [])[len(self._history.epoch) :] = [value]

    def _write_csv(self, epoch, rows, scores):
        with self.path.open("a", newline="", encoding="utf-8") as file:
            for path, row in rows.items():
                finite = scores[path][np.isfinite(scores[path])]
                counts, edges = np.histogram(finite, self.bins)
                cells = ["" if value is None else value for value in row.values()]
                csv.writer(file).writerow([epoch, path, *cells, edges[0], edges[-1], *counts])

    def _forget_from(self, epoch):
        """Keep the file's rows of earlier epochs, if there are any."""
        bins = [f"scores_bin_{i}" for i in range(1, self.bins + 1)]
        rows = [[*_COLUMNS, *bins]]
        if self.path.exists():
            with self.path.open(newline="", encoding="utf-8") as file:
                header, *old = [*csv.reader(file)] or rows
            if header != rows[0] and (epoch > 0 or header[: len(_COLUMNS)] != _COLUMNS):  # at first, bins may be others
                raise ValueError(f"`path` must be a file that this callback wrote. Received: {self.path}, {header=}")
            # A process that was killed may have left a part of a row.
            rows += [row for row in old if len(row) == len(header) and int(row[0]) < epoch]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)

    def _write_tensorboard(self, epoch, rows, scores):
        import tensorflow as tf

        if self._writer is None:
            self._writer = tf.summary.create_file_writer(str(self.log_dir))
        with self._writer.as_default(step=epoch):
            for path, row in rows.items():
                for name, value in row.items():
                    if value is not None:
                        tf.summary.scalar(f"{name}/{path}", value)
                tf.summary.histogram(f"scores/{path}", scores[path])
        self._writer.flush()


def _mask(subnet):
    return to_numpy(subnet.mask) != 0


def _alpha(subnet):
    quantizer = subnet.kernel_quantizer
    if getattr(quantizer, "scale_count", 0) != 1:
        return None
    (alpha,) = quantizer.scales(subnet.frozen_kernel.value, *subnet.find())
    return float(alpha)
