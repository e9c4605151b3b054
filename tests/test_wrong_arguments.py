"""Wrong kinds of arguments: the error names the argument, whatever function or class it is passed to."""

import keras
import numpy as np
import pytest

import keras_mpt
from keras_mpt import analysis, callbacks, convert, layers, masks, models, ops

pytestmark = pytest.mark.slow_with("jax", "torch")

SCORES = np.ones((2, 3), np.float32)


def model():
    return keras.Sequential([keras.Input((3,)), layers.MPTDense(2, seed=0)])


# Calls, and the argument that is wrong in each of them.
WRONG = {
    "masks: sparsity": (lambda: masks.TopK("half"), "sparsity"),
    "masks: a boolean": (lambda: masks.Restricted(True), "sparsity"),
    "masks: selector": (lambda: masks.TopK(0.5, ["search"]), "selector"),
    "masks: a wrong name": (lambda: masks.GlobalTopK(0.5, "serach"), "selector"),
    "masks: group": (lambda: masks.GlobalTopK(0.5, group=3), "group"),
    "ops: size": (lambda: ops.kept_count("ten", 0.5), "size"),
    "ops: a fraction of weights": (lambda: ops.kept_count(10.5, 0.5), "size"),
    "ops: sparsity": (lambda: ops.kept_count(10, "0.5"), "sparsity"),
    "ops: scores": (lambda: ops.magnitude_bits(keras.ops.convert_to_tensor([1, 2])), "scores"),
    "ops: no weights": (lambda: ops.kept_count(0, 0.5), "size"),
    "ops: kept": (lambda: ops.sparsity_of(0, 10), "kept"),
    "ops: more than all": (lambda: ops.entropy_bits(10, 11), "kept"),
    "ops: entropy of nothing known": (lambda: ops.entropy_bits("10", 1), "size"),
    "layers: initializer 0": (lambda: layers.MPTDense(2, kernel_initializer=0), "kernel_initializer"),
    "layers: initializer ''": (lambda: layers.MPTLSTM(2, recurrent_initializer=""), "recurrent_initializer"),
    "layers: initializer False": (lambda: layers.MPTDense(2, scores_initializer=False), "scores_initializer"),
    "layers: initializer NaN": (lambda: layers.MPTDense(2, scores_initializer=np.float64("nan")), "scores_initializer"),
    "layers: initializer a class": (lambda: layers.MPTDense(2, scores_initializer=object), "scores_initializer"),
    "layers: regularizer": (lambda: layers.MPTDense(2, scores_regularizer=0.1), "scores_regularizer"),
    "layers: regularizer's name": (lambda: layers.MPTDense(2, scores_regularizer="l3"), "scores_regularizer"),
    "layers: strides": (lambda: layers.MPTConv2D(2, 3, strides=10**30), "strides"),
    "layers: padding": (lambda: layers.MPTConv2D(2, 3, padding=10**30), "padding"),
    "quantizers: a switch": (
        lambda: keras_mpt.quantizers.SteTern(ternary_weight_networks="no"),
        "ternary_weight_networks",
    ),
    "quantizers: mode": (lambda: keras_mpt.quantizers.DoReFa(mode=np.ones(2)), "mode"),
    "initializers: a switch": (lambda: keras_mpt.initializers.KaimingNormal(scale_fan=1), "scale_fan"),
    "share: a path": (lambda: layers.share("model.keras"), "model"),
    "share: a list": (lambda: layers.share([layers.MPTDense(2)]), "model"),
    "set_sparsity": (lambda: model().layers[0].set_sparsity("0.5"), "sparsity"),
    "callbacks: rate": (lambda: callbacks.IterativeWeightRecycling("0.2", 1), "rate"),
    "callbacks: every": (lambda: callbacks.IteRand(0.2, 1.5), "every"),
    "callbacks: ablation": (lambda: callbacks.IterativeWeightRecycling(0.2, 1, ablation="no"), "ablation"),
    "callbacks: unit": (lambda: callbacks.IteRand(0.2, 1, unit=["epoch"]), "unit"),
    "callbacks: seed": (lambda: callbacks.IteRand(0.2, 1, seed="1"), "seed"),
    "callbacks: epochs": (lambda: callbacks.SparsitySchedule(0.5, epochs=True), "epochs"),
    "callbacks: curve": (lambda: callbacks.SparsitySchedule(0.5, curve=3), "curve"),
    "callbacks: initial sparsity": (lambda: callbacks.SparsitySchedule(0.5, initial_sparsity="0"), "initial_sparsity"),
    "callbacks: power": (lambda: callbacks.ShortRestriction(3, power="4"), "power"),
    "callbacks: path": (lambda: callbacks.MaskStatistics(3), "path"),
    "callbacks: log_dir": (lambda: callbacks.MaskStatistics(log_dir=b"logs"), "log_dir"),
    "callbacks: bins": (lambda: callbacks.MaskStatistics(bins=2.0), "bins"),
    "analysis: one model": (lambda: analysis.overlap_matrix(model()), "sources"),
    "analysis: measure": (lambda: analysis.overlap_matrix([], measure=None), "measure"),
    "analysis: a file's norms": (lambda: analysis.weight_norms("a.mpt"), "model"),
    "analysis: a figure of one": (lambda: analysis.plot_overlap("ab", ["a", "b"]), "sources"),
    "analysis: labels": (lambda: analysis.plot_density([{"a": np.ones(2)}], "a"), "labels"),
    "analysis: path": (lambda: analysis.plot_churn(3), "path"),
    "analysis: batches": (lambda: analysis.criteria_masks(model(), 3, "mse"), "batches"),
    "analysis: a file's criteria": (lambda: analysis.criteria_masks("a.mpt", [], "mse"), "model"),
    "convert: threads": (lambda: convert.latency("a.tflite", "tflite", threads=0), "threads"),
    "convert: threads as text": (lambda: convert.latency("a.tflite", "tflite", threads="2"), "threads"),
    "convert: target": (lambda: convert.run("a.tflite", None, SCORES), "target"),
    "convert: path": (lambda: convert.run(3, "tflite", SCORES), "path"),
    "models: least": (lambda: models.magnitude_sparsity(0.9, least="1000"), "least"),
    "models: sparsity": (lambda: models.to_jackpot(model(), "0.9"), "sparsity"),
    "models: a path": (lambda: models.summary("a.keras"), "model"),
    "tickets: trainable": (lambda: keras_mpt.load_ticket("a.mpt", trainable="no"), "trainable"),
    "tickets: scores": (lambda: keras_mpt.save_ticket(model(), "a.mpt", scores=1), "scores"),
    "tickets: another kind of file": (lambda: keras_mpt.save_ticket(model(), "a.keras"), "path"),
    "models: print_fn": (lambda: models.summary(model(), 3), "print_fn"),
    "tickets: path": (lambda: keras_mpt.load_ticket(3), "path"),
    "assign_mask: scores": (lambda: model().layers[0].assign_mask(SCORES.T, {"a": 1}), "scores"),
    "models: include_macs": (lambda: models.summary(model(), include_macs="no"), "include_macs"),
    "analysis: base": (lambda: analysis.masks(model(), base="base.keras"), "base"),
    "zoo: a list": (lambda: keras_mpt.zoo.get_preset(["conv4_mpt32_s50"]), "name"),
    "zoo: architecture": (lambda: keras_mpt.zoo.list_presets(np.ones(2)), "architecture"),
    "hub: a path": (lambda: keras_mpt.hub.card("a.mpt", "me/a"), "ticket"),
    "hub: metadata": (lambda: keras_mpt.hub.push_to_hub("a.mpt", "me/a", metadata=["mit"]), "metadata"),
    "hub: metadata of a card": (lambda: keras_mpt.hub.metadata_block(metadata=["mit"]), "metadata"),
    "layers: a regularizer of the kernel": (lambda: layers.MPTDense(2, kernel_regularizer="l2"), "kernel_regularizer"),
    "analysis: the first of two": (lambda: analysis.score_correlation("a.mpt", model()), "first"),
    "convert: no precision": (lambda: convert.rounded(SCORES, None), "precision"),
    "convert: compress": (lambda: convert.to_tflm(model(), "a.cc", weights="float32", compress=True), "compress"),
    "convert: mapping": (
        lambda: convert.from_pytorch({"a.weight": SCORES}, "conv2_mpt", 0.5, "biprop", mapping={}),
        "mapping",
    ),
}


@pytest.mark.parametrize("call", WRONG)
def test_the_argument_is_named(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    function, argument = WRONG[call]
    with pytest.raises((ValueError, TypeError), match=f"^`{argument}` .*Received: "):
        function()
    assert not list(tmp_path.iterdir())


# What takes a model.
MODEL = {
    "analysis.n_of_m": analysis.n_of_m,
    "analysis.weight_norms": analysis.weight_norms,
    "hold": layers.hold,
    "share": layers.share,
    "mpt_layers": models.mpt_layers,
    "mpt_layers_by_path": models.mpt_layers_by_path,
    "recalibrate_batch_norm": lambda it: models.recalibrate_batch_norm(it, SCORES),
    "restore": lambda it: keras_mpt.tickets.restore(it, "a.mpt"),
    "summary": models.summary,
    "to_functional": models.to_functional,
    "to_jackpot": models.to_jackpot,
    "to_mpt": models.to_mpt,
}


@pytest.mark.parametrize("function", MODEL.values(), ids=MODEL)
def test_what_is_no_model_is_a_type_error(function, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TypeError, match="^`model` must be a Keras model.*Received: "):
        function(model().layers)
    assert not list(tmp_path.iterdir())


# Calls with the path of a ticket that is not there, and the argument that it was passed as.
MISSING = {
    "load_ticket": (lambda path: keras_mpt.load_ticket(path), "path"),
    "Ticket.read": (lambda path: keras_mpt.tickets.Ticket.read(path), "path"),
    "restore": (lambda path: keras_mpt.tickets.restore(model(), path), "ticket"),
    "zoo": (lambda path: keras_mpt.zoo.conv2_mpt(weights=path), "weights"),
    "masks": (lambda path: analysis.masks(path), "source"),
    "overlap": (lambda path: analysis.overlap(model(), path), "second"),
    "overlap_matrix": (lambda path: analysis.overlap_matrix([path]), "sources"),
}


@pytest.mark.parametrize("call", MISSING)
@pytest.mark.parametrize("path", ["no.mpt", "folder.mpt"])
def test_the_argument_of_a_missing_ticket_is_named(call, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.mpt").mkdir()
    function, argument = MISSING[call]
    with pytest.raises((FileNotFoundError, IsADirectoryError), match=f"^`{argument}` must .*Received: {path}"):
        function(path)


def test_switches_of_numpy_become_those_of_python(tmp_path):
    layer = layers.MPTDense(2, use_bias=np.True_, trainable=np.False_, seed=0)
    assert layer.get_config()["use_bias"] is True and layer.get_config()["trainable"] is False
    keras_mpt.save_ticket(model(), tmp_path / "a.mpt", scores=np.False_)
    assert keras_mpt.load_ticket(tmp_path / "a.mpt", trainable=np.True_).trainable_variables
