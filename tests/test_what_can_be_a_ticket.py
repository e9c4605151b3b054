"""The table of docs/guides/what-can-be-a-ticket.md beside what is installed."""

import pathlib
import re

import keras
import pytest

from keras_mpt import layers

pytestmark = pytest.mark.slow_with("jax", "torch")

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "guides" / "what-can-be-a-ticket.md"


def table():
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", PAGE.read_text(), flags=re.MULTILINE)
    return {name: [cell.strip() for cell in cells.split("|")] for name, cells in rows}


def test_ours_are_all_that_there_are():
    ours = {getattr(keras.layers, name): getattr(layers, cells[-1].strip("`")) for name, cells in table().items()}
    cells = (keras.layers.SimpleRNNCell, keras.layers.LSTMCell, keras.layers.GRUCell)
    assert ours == {plain: cls for plain, cls in layers.TWINS.items() if plain not in cells}


def test_keras_quantizes_what_the_table_says():
    for name, cells in table().items():
        own = getattr(keras.layers, name).quantize is not keras.layers.Layer.quantize
        attention = "Attention" in name  # whose projections are `EinsumDense`
        assert cells[3].startswith("int8") == (own or attention), name
    assert keras.layers.EinsumDense.quantize is not keras.layers.Layer.quantize
