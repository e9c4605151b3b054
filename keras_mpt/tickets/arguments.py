"""Arguments of `save_ticket` and `load_ticket`, checked."""

import inspect
import json
from collections.abc import Iterable

import keras
import numpy as np

from keras_mpt.arguments import received
from keras_mpt.tickets import container


def checked_objects(given):
    """Return `custom_objects` as a list.

    Raises:
        TypeError: It is neither a list of classes and functions, nor a dict of them.
        ValueError: One of them is not registered with Keras.
    """
    given = list(given.values()) if isinstance(given, dict) else given
    objects = list(given) if isinstance(given, Iterable) and not isinstance(given, str) else [None]
    if not all(isinstance(found, type) or inspect.isroutine(found) for found in objects):
        raise TypeError(
            f"`custom_objects` must be a list of classes and functions. {received('custom_objects', given)}"
        )
    for found in objects:
        if keras.saving.get_registered_object(keras.saving.get_registered_name(found)) is not found:
            raise ValueError(
                "`custom_objects` must be registered with Keras, since a file has only their names: put "
                f'`@keras.saving.register_keras_serializable(package="my_package")` above the definition of '
                f"{found.__name__}. {received('custom_objects', given)}"
            )
    return objects


def checked_provenance(provenance):
    """Return `provenance` as JSON data.

    Raises:
        ValueError: It is not a dict of such data.
    """
    if not isinstance(provenance, (dict, type(None))):
        raise ValueError(f"`provenance` must be a dict of JSON data or None. {received('provenance', provenance)}")
    try:
        return container.parse(json.dumps(provenance or {}, allow_nan=False, default=_python_number))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"`provenance` must be a dict of JSON data: {error}. {received('provenance', provenance)}"
        ) from error


def _python_number(value):
    """Return a number of numpy, such as a mean of accuracies, as one of Python."""
    if isinstance(value, (np.number, np.bool_)):
        return value.item()
    raise TypeError(f"{type(value).__name__} is not JSON data")
