"""Types of arguments in signatures."""

import os
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

Tensor: TypeAlias = Any  # of the backend, or what Keras takes as one: there is no common class
Path: TypeAlias = str | os.PathLike[str]
Names: TypeAlias = str | type | Iterable[str | type]  # of layers: paths and classes
CustomObjects: TypeAlias = Iterable[type | Callable] | dict[str, type | Callable]
