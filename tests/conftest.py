"""What all tests share: known random seeds, no state left over from one file to the next."""

import pathlib
import sys

import keras
import numpy as np
import pytest
from absl.flags import FLAGS

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples" / "recipes"


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
def rng():
    return np.random.default_rng(0)


# Files, or tests of them, that are left to `make test-all` to save time. Other backends than TensorFlow leave out what
# does no tensor arithmetic of its own; so does JAX, which compiles each operation anew for each shape, with networks
# that are compared with PyTorch's.
_ELSEWHERE_SLOW = [
    "test_arguments",
    "test_benchmarks",
    "test_commands",
    "test_distributed",
    "test_families",
    "test_hub",
    "test_layering",
    "test_pytorch_reading",
    "test_requirements",
    "test_ticket_coding",
    "test_ticket_document",
    "test_ticket_fuzz",
    "test_ticket_limits",
    "test_ticket_models",
    "test_ticket_safety",
    "test_types",
    "test_what_can_be_a_ticket",
    "test_wrong_arguments",
    "test_examples",
    "test_presets::test_the_recipe_makes_the_network",
    "test_presets::test_loading_by_name_dataset_and_path",
    "test_tickets::test_a_process_that_is_killed_leaves_the_old_file",
    "test_to_mpt_twins::test_trained_saved_and_stripped",
]
_SLOW = {
    "jax": {
        *_ELSEWHERE_SLOW,
        "test_jackpots",
        "test_summary",
        "test_zoo_torch",
        "test_zoo_networks",
        "test_pytorch_document",
        "test_pytorch_import",
    },
    "torch": {*_ELSEWHERE_SLOW},
    "tensorflow": {
        "test_benchmarks::test_networks_in_pytorch_are_those_of_the_zoo",
        "test_commands::test_evaluating_a_converted_file",
        "test_convert::test_command_line",
        "test_convert::test_networks_of_the_zoo",
        "test_convert_twins::test_every_kernel_is_int8",
        "test_distributed::test_all_replicas_are_equal",
        "test_distributed::test_plain_batch_norm_of_mirrored_replicas_is_another_training",
        "test_distributed::test_training_is_that_of_one_device",
        "test_docs::test_first_ticket_is_as_good_as_promised",
        "test_docs::test_notebooks_run",
        "test_examples::test_a_finished_run_is_not_overwritten",
        "test_examples::test_evaluating_presets_and_their_phone_files",
        "test_examples::test_jackpots_of_a_dense_network",
        "test_examples::test_resuming_after_a_kill_reproduces_the_uninterrupted_run",
        "test_examples::test_the_recipe_of_a_preset_gives_the_same_ticket_again",
        "test_families::test_family",
        "test_larq::test_larq_objects_in_keras_3_layers",
        "test_presets::test_publishing_writes_everything_or_nothing",
        "test_to_mpt_applications::test_trained_stripped_saved_and_loaded",
        "test_to_mpt_twins::test_trained_saved_and_stripped",
    },
}


def pytest_collection_modifyitems(items):
    for item in items:
        if {item.path.stem, f"{item.path.stem}::{item.originalname}"} & _SLOW[keras.backend.backend()]:
            item.add_marker(pytest.mark.slow)
