"""Loads scorers in Python: imports `package.module:factory`, and calls it with the configured options."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any

from w2s_core.config import PythonScorerConfig
from w2s_core.errors import ConfigurationError
from w2s_core.scorers.python_scorer import PythonScorer


def load_python_scorer(name: str, config: PythonScorerConfig) -> PythonScorer:
    """The scorer that `scorers.NAME` configures, from a module that is installed or stands in the working directory.

    Its code runs in this process. Raises ConfigurationError.
    """
    key = f"scorers.{name}.python"
    factory = import_callable(key, config.python)
    try:
        scorer = factory(**config.options)
    except Exception as error:
        raise ConfigurationError(f"{key}: `{config.python}` raised {_described(error)}") from error
    if isinstance(scorer, type) or not all(callable(getattr(scorer, method, None)) for method in ("check", "open")):
        raise ConfigurationError(
            f"{key}: `{config.python}` returned a {type(scorer).__name__}, which is no Scorer. To make one of a "
            "function of texts, return w2s_core.AnswerScorer(function)."
        )
    return PythonScorer(name, scorer)


def import_callable(key: str, reference: str, kind: str = "factory") -> Callable[..., Any]:
    """The function that `package.module:name` names, installed or in the working directory; `kind` is for messages.

    Raises ConfigurationError, which names `key`.
    """
    module_name, colon, attribute = reference.partition(":")
    if not (module_name and colon and attribute):
        raise ConfigurationError(f'{key}: must be "package.module:{kind}", not `{reference}`.')
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.append(folder)  # last, so that it hides nothing that is installed
    try:
        module = import_module(module_name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            reason = f"there is no module `{error.name}`. It must be installed, or stand where the server starts."
        else:
            reason = f"importing `{module_name}` raised {_described(error)}"
        raise ConfigurationError(f"{key}: {reason}") from error
    try:
        factory = attrgetter(attribute)(module)
    except AttributeError as error:
        raise ConfigurationError(f"{key}: the module `{module_name}` has no `{attribute}`.") from error
    if not callable(factory):
        raise ConfigurationError(f"{key}: `{reference}` cannot be called, it is a {type(factory).__name__}.")
    return factory  # type: ignore[no-any-return]


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
