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
    if keras.backend.backend() == "jax":  # its programs take memory mappings, of which a process may have 65530
        import jax

        jax.clear_caches()


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# To save time, other backends than TensorFlow leave to `make test-all` what does no tensor arithmetic of its own, and
# JAX, which compiles each operation anew for each shape, the networks that are compared with PyTorch's.
_ELSEWHERE_SLOW = ["test_ticket_coding", "test_ticket_document", "test_ticket_fuzz", "test_ticket_safety"]
_SLOW = {
    "jax": [*_ELSEWHERE_SLOW, "test_zoo_torch", "test_pytorch_document"],
    "torch": _ELSEWHERE_SLOW,
}


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.stem in _SLOW.get(keras.backend.backend(), ()):
            item.add_marker(pytest.mark.slow)
