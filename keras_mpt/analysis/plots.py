"""Plots as matplotlib figures without a window: `figure.savefig("masks.png")`."""

import csv

import numpy as np

from keras_mpt.analysis.comparison import overlap_matrix
from keras_mpt.analysis.sources import masks_of
from keras_mpt.arguments import check_choice, check_list, check_path
from keras_mpt.requirements import extra

_SMALL = 12  # rows of a heat map with room for numbers


def plot_overlap(sources, labels, measure="jaccard", title=None):
    """Plot a heat map of the overlaps between the masks of networks.

    Args:
        sources: List of at least two models, tickets, paths of tickets, or dicts of masks, of one architecture.
        labels: List of their names.
        measure: `"jaccard"` or `"hamming"`.
        title: Title of the figure.

    Returns:
        A `matplotlib.figure.Figure`. The line in the colour bar marks the value for independent masks.

    Raises:
        ValueError: There are fewer than two sources, the number of labels differs, `measure` is unknown, or the shapes
            of the kernels differ.
        TypeError: A source is of another type, or `sources` or `labels` is not a list.
        TicketError, OSError: A ticket cannot be read.
        ImportError: matplotlib is not installed.
    """
    check_choice("measure", measure, ("jaccard", "hamming"))
    sources = _masks(sources, labels, least=2)
    matrix, expected = (overlap_matrix(sources, name) for name in (measure, f"expected_{measure}"))
    others = ~np.eye(len(sources), dtype=bool)
    independent = expected[others].mean()

    size = max(4.0, 1.6 + 0.55 * min(len(sources), 2 * _SMALL))
    figure, axes = _figure(size + 1.2, size)
    image = axes.imshow(matrix, cmap="viridis", vmin=0, vmax=1)
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(labels)), labels)
    if len(sources) <= _SMALL:
        for (i, j), value in np.ndenumerate(matrix):
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", color="black" if value > 0.6 else "white")
    bar = figure.colorbar(image, label="Jaccard index" if measure == "jaccard" else "Hamming distance")
    bar.ax.axhline(independent, color="red", linewidth=2)
    between = f"mean of pairs {matrix[others].mean():.3f}, independent masks {independent:.3f} (red line)"
    axes.set_title(f"{title}\n{between}" if title else between, fontsize="medium")
    return figure


def plot_density(sources, labels, title=None):
    """Plot the fraction of weights that each layer keeps, one line per network.

    Args:
        sources: List of models, tickets, paths of tickets, or dicts of masks, of one architecture.
        labels: List of their names.
        title: Of the figure.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: There are no sources, the number of labels differs, or the numbers of layers differ.
        TypeError: A source is of another type, or `sources` or `labels` is not a list.
        TicketError, OSError: A ticket cannot be read.
        ImportError: matplotlib is not installed.
    """
    sources = _masks(sources, labels, least=1)
    if len({len(source) for source in sources}) > 1:
        raise ValueError(f"`sources` must have as many layers each. Received: {[len(source) for source in sources]}")
    names = list(sources[0])
    figure, axes = _figure(max(6.0, 1.5 + 0.45 * len(names)), 4)
    for source, label in zip(sources, labels, strict=True):
        axes.plot(names, [100 * mask.mean() for mask in source.values()], "o-", label=label)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("kept weights (%)")
    axes.tick_params("x", rotation=60)
    return _finished(figure, axes, title)


def plot_churn(path, title=None):
    """Plot how many weights of each layer's mask changed in each epoch.

    Args:
        path: CSV file that `keras_mpt.callbacks.MaskStatistics` wrote.
        title: Of the figure.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: The file has no rows of `MaskStatistics`.
        TypeError: `path` is not a path.
        OSError: It cannot be opened.
        ImportError: matplotlib is not installed.
    """
    layers = {}
    with check_path("path", path).open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if not {"epoch", "layer", "flip_ratio"} <= row.keys():
                raise ValueError(f"`path` must be a file of MaskStatistics. Received: {path} with columns {[*row]}")
            if None in row.values():  # a training that is under way, or was killed, may have written a part of a row
                continue
            epochs, flips = layers.setdefault(row["layer"], ([], []))
            epochs.append(int(row["epoch"]) + 1)
            flips.append(100 * float(row["flip_ratio"]))
    if not layers:
        raise ValueError(f"`path` must be a file with rows of MaskStatistics. Received: {path} without one")
    figure, axes = _figure(7, 4)
    from matplotlib import colormaps

    colours = colormaps["viridis"](np.linspace(0, 0.9, len(layers)))
    for colour, (layer, (epochs, flips)) in zip(colours, layers.items(), strict=True):
        axes.plot(epochs, flips, "o-", markersize=3, color=colour, label=layer)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylabel("weights that came or went (%)")
    return _finished(figure, axes, title)


def _masks(sources, labels, least):
    check_list("sources", sources)
    check_list("labels", labels)
    if not len(sources) == len(labels) >= least:
        raise ValueError(f"`labels` must name {least} or more `sources`. Received: {len(sources)} sources, {labels=}")
    return [masks_of("sources", source) for source in sources]


def _figure(width, height):
    """Return a figure and its axes; not by pyplot, which would keep it and need a display."""
    with extra("analysis", "Plotting"):
        from matplotlib.figure import Figure
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _finished(figure, axes, title):
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", ncols=1 + (len(axes.lines) - 1) // 8)
    if title:
        axes.set_title(title)
    return figure
