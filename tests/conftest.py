"""What all tests share: known random seeds, no state left over from one file to the next."""

import keras
import numpy as np
import pytest


@pytest.fixture(autouse=True)
def seeds():
    keras.utils.set_random_seed(0)


@pytest.fixture(scope="module", autouse=True)
def session():
    yield
    keras.backend.clear_session()


@pytest.fixture
def rng():
    return np.random.default_rng(0)
