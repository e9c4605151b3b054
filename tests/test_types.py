"""Types of the public functions: there, true of the defaults, and shipped. `make lint` checks them against the code."""

import importlib
import inspect
import pathlib
import types
import typing

import pytest

import keras_mpt

pytestmark = pytest.mark.slow_with("jax", "torch")

TYPED = ("ops", "masks", "models", "tickets", "convert")


def functions():
    """Yield names and functions: what the modules export, and the public methods of the classes among it."""
    for module in (importlib.import_module(f"keras_mpt.{name}") for name in TYPED):
        for name in module.__all__:
            found = getattr(module, name)
            if inspect.isfunction(found):
                yield f"{module.__name__}.{name}", found
                continue
            for method, value in vars(found).items():
                value = getattr(value, "__func__", value)  # of class methods
                written = inspect.isfunction(value) and value.__code__.co_filename != "<string>"  # of a dataclass
                if written and (method in ("__init__", "__call__") or not method.startswith("_")):
                    yield f"{module.__name__}.{name}.{method}", value


FUNCTIONS = dict(functions())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_public_functions_have_types(name):
    function = FUNCTIONS[name]
    hints = typing.get_type_hints(function)
    parameters = [p for p in inspect.signature(function).parameters.values() if p.name not in ("self", "cls")]
    missing = [p.name for p in parameters if p.name not in hints] + ["return"] * ("return" not in hints)
    assert not missing
    for parameter in parameters:
        if parameter.default is not parameter.empty:
            assert fits(parameter.default, hints[parameter.name]), parameter


def fits(value, hint):
    """Whether a value is of a type, as far as `isinstance` can tell; an int is a float, too."""
    if hint is typing.Any:
        return True
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(fits(value, part) for part in typing.get_args(hint))
    plain = typing.get_origin(hint) or hint
    return isinstance(value, (int, float) if plain is float else plain)


def test_all_kinds_of_functions_are_looked_at():
    assert len(FUNCTIONS) > 50
    for name in ("ops.kept_count", "masks.TopK.__call__", "tickets.Ticket.read", "convert.to_lce"):
        assert f"keras_mpt.{name}" in FUNCTIONS
    assert not fits(None, int) and fits(None, int | None) and fits((), list[str] | tuple)


def test_the_package_says_that_it_has_types():
    root = pathlib.Path(keras_mpt.__file__).parent
    assert (root / "py.typed").is_file()
    assert '"keras_mpt": ["py.typed"]' in (root.parent / "setup.py").read_text(encoding="utf-8")
