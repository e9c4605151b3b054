"""Overlap of masks, norms and correlations against their formulas; figures are made."""

import builtins
import itertools

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import keras_mpt
from keras_mpt import analysis
from keras_mpt.layers import MPTDense, MPTSeparableConv2D
from keras_mpt.models import mpt_layers_by_path
from support.layer_contract import numpy, randomize_scores
from support.networks import nested_and_shared

pytestmark = pytest.mark.slow_with("jax")  # numpy computes all of this
PAIRS = hnp.array_shapes(max_dims=3, max_side=5).flatmap(lambda shape: st.tuples(*[hnp.arrays(bool, shape)] * 2))


@settings(max_examples=100, deadline=None)
@given(st.lists(PAIRS, min_size=1, max_size=3))
def test_overlap_is_by_its_formulas(pairs):
    first, second = ({f"layer{i}": pair[k] for i, pair in enumerate(pairs)} for k in (0, 1))
    result = analysis.overlap(first, second)
    cases = [*zip(result.layers.values(), pairs, strict=True)]
    cases.append((result.total, [np.concatenate([pair[k].ravel() for pair in pairs]) for k in (0, 1)]))
    for found, (a, b) in cases:
        assert (found.size, found.first, found.second) == (a.size, a.sum(), b.sum())
        assert found.jaccard == pytest.approx((a & b).sum() / (a | b).sum() if (a | b).any() else 1)
        assert found.hamming == pytest.approx((a != b).mean())
    independent = sum(a.sum() * b.sum() / a.size for a, b in pairs)
    assert result.total.expected == pytest.approx(independent)
    assert repr(result) == f"<Comparison of {len(pairs)} masks: Jaccard {result.total.jaccard:.4f}>"
    p, q = (pairs[0][k].mean() for k in (0, 1))
    one = result.layers["layer0"]
    assert one.expected_hamming == pytest.approx(p * (1 - q) + q * (1 - p))
    if p + q:
        assert one.expected_jaccard == pytest.approx(p * q / (p + q - p * q))


def test_expectation_is_the_mean_over_all_masks():
    masks = [np.isin(np.arange(6), kept) for kept in itertools.combinations(range(6), 2)]
    fixed = np.isin(np.arange(6), (0, 2, 4))
    found = [analysis.overlap({"a": fixed}, {"a": mask}).total for mask in masks]
    assert np.mean([overlap.hamming for overlap in found]) == pytest.approx(found[0].expected_hamming)
    assert np.mean([overlap.both for overlap in found]) == pytest.approx(found[0].expected) == 1.0


def networks():
    """Two models of one architecture with other names, scores and weights."""
    models = [nested_and_shared(), nested_and_shared()]
    for layer in mpt_layers_by_path(models[0]).values():
        randomize_scores(layer)
    return models


def test_models_tickets_and_files_say_the_same(tmp_path):
    first, second = networks()
    path = tmp_path / "first.mpt"
    ticket = keras_mpt.save_ticket(first, path)
    expected = analysis.overlap(first, second)
    assert list(expected.layers) == list(mpt_layers_by_path(first)) == list(analysis.masks(ticket))
    for source in (ticket, path, str(path), analysis.masks(first)):
        assert analysis.overlap(source, second) == expected
        assert analysis.overlap(source, first).total.jaccard == 1
    for name, layer in mpt_layers_by_path(first).items():
        mask = numpy(layer.subnet_mask)
        np.testing.assert_array_equal(analysis.masks(path)[name], mask == 1)
    text = str(expected)
    assert "all layers" in text and f"{expected.total.jaccard:.4f}" in text and max(map(len, text.splitlines())) <= 80
    assert f"{expected.total.expected_hamming:.4f}" in expected._repr_html_()


def test_a_ticket_of_another_network_needs_that(tmp_path):
    base, layer = keras.layers.Dense(6, use_bias=False), MPTDense(6, seed=1, kernel_quantizer=None, name="dense")
    base, model = (keras.Sequential([keras.Input((6,)), each]) for each in (base, layer))
    layer.frozen_kernel.assign(numpy(base.layers[0].kernel))
    ticket = keras_mpt.save_ticket(model, tmp_path / "dense.mpt", base=base)
    np.testing.assert_array_equal(analysis.masks(ticket, base=base)["dense"], numpy(layer.subnet_mask) == 1)
    with pytest.raises(keras_mpt.TicketError, match="pass that as `base`"):
        analysis.masks(ticket)


def test_matrix():
    sources = [{"a": np.array(mask)} for mask in ([1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 1, 1])]
    np.testing.assert_allclose(analysis.overlap_matrix(sources), [[1, 1 / 3, 0], [1 / 3, 1, 1 / 3], [0, 1 / 3, 1]])
    np.testing.assert_allclose(analysis.overlap_matrix(sources, "hamming"), [[0, 0.5, 1], [0.5, 0, 0.5], [1, 0.5, 0]])
    np.testing.assert_allclose(analysis.overlap_matrix(sources, "expected_jaccard"), np.full((3, 3), 1 / 3))
    with pytest.raises(ValueError, match="`measure` must be one of .*jaccard"):
        analysis.overlap_matrix(sources, "dice")
    for one in (networks()[0], "a.mpt", sources[0], 3):
        with pytest.raises(TypeError, match="`sources` must be a list. Received: sources="):
            analysis.overlap_matrix(one)


def test_bad_sources(tmp_path):
    model = networks()[0]
    with pytest.raises(ValueError, match="of one architecture. Received: kernels of shapes"):
        analysis.overlap(model, {"a": np.ones(3)})
    with pytest.raises(TypeError, match="`source` must be a model, a ticket, its path, or a dict"):
        analysis.masks(3)
    with pytest.raises(ValueError, match="must have MPT layers"):
        analysis.masks(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]))
    with pytest.raises(OSError):
        analysis.masks(tmp_path / "none.mpt")


def test_dicts_with_the_same_names_are_paired_by_name():
    first, second = {"a": np.array([1, 0]), "b": np.array([0, 1])}, {"b": np.array([0, 1]), "a": np.array([1, 0])}
    assert analysis.overlap(first, second).total.jaccard == 1


def test_masks_of_two_shapes_have_no_overlap():
    with pytest.raises(ValueError, match=r"Masks must have one shape. Received: \(2, 3\) and \(3,\)"):
        analysis.Overlap.of(np.ones((2, 3), bool), np.ones(3, bool))
    with pytest.raises(ValueError, match=r"Masks must have entries. Received: masks of shape \(0, 3\)"):
        analysis.Overlap.of(np.ones((0, 3), bool), np.ones((0, 3), bool))


def test_norms():
    model = networks()[0]
    for name, norms in analysis.weight_norms(model).items():
        layer = mpt_layers_by_path(model)[name]
        frozen, mask = numpy(layer.frozen_kernel).astype(np.float64), numpy(layer.subnet_mask)
        assert norms.kept == pytest.approx(np.sqrt((frozen**2 * mask).sum()))
        assert norms.dropped == pytest.approx(np.sqrt((frozen**2 * (1 - mask)).sum()))
        assert norms.kept_mean == pytest.approx((np.abs(frozen) * mask).sum() / mask.sum())
        assert norms.dropped_mean == pytest.approx((np.abs(frozen) * (1 - mask)).sum() / (1 - mask).sum())
    whole = keras.Sequential([keras.Input((4,)), MPTDense(3, sparsity=0.0, seed=1)])
    (norms,) = analysis.weight_norms(whole).values()
    assert norms.dropped == norms.dropped_mean == 0 and norms.kept > 0


def test_layers_with_several_kernels(tmp_path):
    inputs = keras.Input((5, 5, 2))
    x = MPTSeparableConv2D(3, 3, sparsity=0.5, seed=1, name="separable")(inputs)
    model = keras.Model(inputs, MPTDense(2, seed=2, name="dense")(keras.layers.Flatten()(x)))
    for subnet in model.get_layer("separable").subnets:
        subnet.scores.assign(np.random.default_rng(0).normal(size=subnet.shape))
    depthwise, pointwise = model.get_layer("separable").subnets
    found = analysis.masks(model)
    assert list(found) == ["separable/depthwise_kernel", "separable/pointwise_kernel", "dense"]
    np.testing.assert_array_equal(found["separable/pointwise_kernel"], numpy(pointwise.mask) != 0)
    ticket = keras_mpt.save_ticket(model, tmp_path / "a.mpt")
    assert list(analysis.masks(ticket)) == list(found)
    assert analysis.overlap(model, ticket).total.jaccard == 1
    norms, correlation = analysis.weight_norms(model), analysis.score_correlation(model, model)
    weights = numpy(depthwise.frozen_kernel)[numpy(depthwise.mask) != 0]
    assert norms["separable/depthwise_kernel"].kept == pytest.approx(np.sqrt((weights**2).sum()))
    assert list(norms) == list(correlation) == list(found) and correlation["dense"] == pytest.approx(1)


def test_correlation_of_scores():
    first, second = networks()
    found = analysis.score_correlation(first, second)
    pairs = zip(mpt_layers_by_path(first).items(), mpt_layers_by_path(second).values(), strict=True)
    for (name, layer), other in pairs:
        magnitudes = (np.abs(numpy(each.scores)).ravel() for each in (layer, other))
        assert found[name] == pytest.approx(np.corrcoef(*magnitudes)[0, 1], abs=1e-6)
    assert list(analysis.score_correlation(first, first).values()) == pytest.approx([1.0] * len(found))
    layer.scores.assign(np.ones(layer.scores.shape))
    assert np.isnan(analysis.score_correlation(first, first)[name])
    with pytest.raises(ValueError, match="`second` must be a built model.*'unbuilt' without scores"):
        analysis.score_correlation(first, keras.Sequential([MPTDense(3, name="unbuilt")]))


def test_models_must_have_masks():
    plain = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    unbuilt = keras.Sequential([MPTDense(3)])
    for function in (analysis.weight_norms, analysis.n_of_m, lambda model: analysis.score_correlation(model, model)):
        with pytest.raises(ValueError, match="must have MPT layers"):
            function(plain)
        with pytest.raises(ValueError, match="must be a built model"):
            function(unbuilt)


def test_paths_of_two_layers_are_not_the_same():
    class Twice(keras.Model):
        def __init__(self):
            super().__init__()
            self.one, self.other = MPTDense(2, name="same"), MPTDense(2, name="same")

    with pytest.raises(ValueError, match="names of their own. Received: two 'same'"):
        mpt_layers_by_path(Twice())


def test_figures(tmp_path):
    models = networks()
    sources = [analysis.masks(models[0]), models[1], models[0]]
    lines = ["epoch,layer,flip_ratio", "0,conv1,0.5", "0,dense1,0.25", "1,conv1,0.1", "1,dense1,0.05"]
    (tmp_path / "masks.csv").write_text("\n".join([*lines, "2,conv1"]))  # a row that is being written
    overlap = analysis.plot_overlap(sources, ["a", "b", "c"], title="Seeds")
    density = analysis.plot_density(sources, ["a", "b", "c"], title="Density")
    churn = analysis.plot_churn(tmp_path / "masks.csv", title="Churn")
    for name, figure in {"overlap": overlap, "density": density, "churn": churn}.items():
        figure.savefig(tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
    drawn = overlap.axes[0].images[0].get_array()
    np.testing.assert_allclose(drawn, analysis.overlap_matrix(sources))
    few, many = ({"a": np.arange(10) < kept} for kept in (2, 6))
    total, between = analysis.overlap(few, many).total, analysis.plot_overlap([few, many], ["few", "many"])
    for mean in (total.jaccard, total.expected_jaccard):  # of two masks, not of one and itself
        assert f"{mean:.3f}" in between.axes[0].get_title()
    assert [text.get_text() for text in overlap.axes[0].texts][1] == f"{drawn[0, 1]:.2f}"
    kept = [100 * mask.mean() for mask in sources[0].values()]
    np.testing.assert_allclose(density.axes[0].lines[0].get_ydata(), kept)
    np.testing.assert_allclose(churn.axes[0].lines[0].get_xydata(), [[1, 50], [2, 10]])
    assert len(analysis.plot_overlap([sources[0]] * 20, list(range(20)), "hamming").axes[0].texts) == 0


def test_bad_input_for_figures(tmp_path):
    source = {"a": np.ones(3)}
    with pytest.raises(ValueError, match="`labels` must name 2 or more `sources`"):
        analysis.plot_overlap([source], ["a"])
    with pytest.raises(ValueError, match="`measure` must be one of .*'hamming'.* Received: measure='expected"):
        analysis.plot_overlap([source, source], ["a", "b"], "expected_jaccard")
    with pytest.raises(ValueError, match="`labels` must name 1 or more `sources`"):
        analysis.plot_density([source], ["a", "b"])
    with pytest.raises(ValueError, match="as many layers each"):
        analysis.plot_density([source, {"a": np.ones(3), "b": np.ones(3)}], ["a", "b"])
    (tmp_path / "empty.csv").write_text("epoch,layer,flip_ratio\n")
    with pytest.raises(ValueError, match="must be a file with rows of MaskStatistics"):
        analysis.plot_churn(tmp_path / "empty.csv")
    (tmp_path / "other.csv").write_text("epoch,loss\n0,1.5\n")
    with pytest.raises(ValueError, match="file of MaskStatistics.*other.csv with columns .*'loss'"):
        analysis.plot_churn(tmp_path / "other.csv")


def test_without_matplotlib_figures_say_what_is_missing(monkeypatch):
    usual = builtins.__import__

    def without(name, *arguments):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return usual(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match="Plotting needs an extra .*analysis"):
        analysis.plot_density([{"a": np.ones(3)}], ["a"])
