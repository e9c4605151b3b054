"""Signatures of the layers for mkdocstrings, which reads sources and runs nothing.

MPT layers take the arguments of Keras' layers and get their signatures from these when they are imported. Here they are
imported, and what `inspect.signature` says stands on their page.
"""

import importlib
import inspect

import griffe

MODULE = "keras_mpt.layers"
KINDS = {
    inspect.Parameter.POSITIONAL_OR_KEYWORD: griffe.ParameterKind.positional_or_keyword,
    inspect.Parameter.KEYWORD_ONLY: griffe.ParameterKind.keyword_only,
    inspect.Parameter.VAR_POSITIONAL: griffe.ParameterKind.var_positional,
    inspect.Parameter.VAR_KEYWORD: griffe.ParameterKind.var_keyword,
}


class Signatures(griffe.Extension):
    """Give the layers of keras_mpt the signatures that they have when they are imported."""

    def on_class(self, *, cls, **kwargs):
        layer = getattr(importlib.import_module(MODULE), cls.name, None) if cls.path.startswith(MODULE) else None
        if not isinstance(layer, type) or not hasattr(layer, "__signature__"):
            return
        parameters = [
            griffe.Parameter(name, kind=KINDS[parameter.kind], default=_default(parameter))
            for name, parameter in inspect.signature(layer).parameters.items()
        ]
        parameters.insert(0, griffe.Parameter("self", kind=griffe.ParameterKind.positional_or_keyword))
        cls.set_member("__init__", griffe.Function("__init__", parameters=griffe.Parameters(*parameters)))


def _default(parameter):
    return None if parameter.default is parameter.empty else repr(parameter.default)
