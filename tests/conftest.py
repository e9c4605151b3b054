"""What all tests share: known random seeds, no state left over from one file to the next.

Keras is imported in functions: the process that only hands out tests to workers starts without it, in seconds less.
"""

import gc
import os
import pathlib
import sys

import numpy as np
import pytest
from absl.flags import FLAGS

# TensorFlow, which reads this when it is loaded, leaves oneDNN off on AMD processors without AVX-512, and with it
# convolutions with channels first.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples" / "recipes"


@pytest.fixture(autouse=True)
def seeds():
    import keras

    keras.utils.set_random_seed(0)


@pytest.fixture(scope="module", autouse=True)
def session():
    import keras

    yield
    keras.backend.clear_session()
    if keras.backend.backend() == "jax":  # its programs take memory mappings, of which a process may have 65530
        import jax

        jax.clear_caches()


@pytest.fixture
def scripts(monkeypatch):
    """Let a test import the scripts in examples/; these and their flags are gone afterwards."""
    monkeypatch.syspath_prepend(EXAMPLES)
    flags, modules = set(FLAGS), set(sys.modules)
    yield
    for name in set(FLAGS) - flags:
        delattr(FLAGS, name)
    for name in set(sys.modules) - modules:
        if (EXAMPLES / f"{name}.py").exists():
            del sys.modules[name]


@pytest.fixture
def keras_settings():
    """Let a test change Keras' global settings."""
    import keras

    before = keras.config.image_data_format(), keras.config.floatx(), keras.config.dtype_policy()
    yield
    keras.config.set_image_data_format(before[0])
    keras.config.set_floatx(before[1])
    keras.config.set_dtype_policy(before[2])


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def pytest_collection_modifyitems(items):
    import keras

    for item in items:
        if any(keras.backend.backend() in mark.args for mark in item.iter_markers("slow_with")):
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish(session):
    """Let garbage collection, which each trace of TensorFlow sets off, pass by the million objects of the imports."""
    gc.collect()
    gc.freeze()
