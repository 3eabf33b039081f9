"""The variables of a chat template that a caller may set, such as `enable_thinking`: those that the template reads."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from typing import Any

from jinja2 import Environment, TemplateSyntaxError, meta
from jinja2.defaults import DEFAULT_NAMESPACE

from presift.core.errors import InvalidRequest

# Functions that transformers gives to templates, and the date of today that some templates let callers set.
_FUNCTIONS = {"raise_exception", "strftime_now", *DEFAULT_NAMESPACE}
# A tag of transformers, which marks what a model was trained to write. Rendering leaves it out.
_GENERATION_TAG = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")


def template_variables(tokenizer: Any) -> frozenset[str]:
    """The variables of transformers' `tokenizer` that callers may set: not those that it or presift sets itself."""
    templates = tokenizer.chat_template
    sources = templates.values() if isinstance(templates, dict) else (templates,)
    read = frozenset[str]().union(*map(_undeclared, sources))
    own: set[str] = inspect.signature(tokenizer.apply_chat_template).parameters.keys() | {
        *tokenizer.SPECIAL_TOKENS_ATTRIBUTES
    }
    return read - own - _FUNCTIONS - {"messages", "tools"}


def check_variables(given: Iterable[str], known: frozenset[str]) -> None:
    """Raise InvalidRequest for a variable that the template does not read."""
    for name in given:
        if name not in known:
            names = ", ".join(sorted(known)) or "none"
            raise InvalidRequest(
                f"prompt.chat.template_kwargs_json.{name[:64]}", "set", f"unset: the template has {names}"
            )


def _undeclared(source: str) -> frozenset[str]:
    environment = Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=False)
    try:
        return frozenset(meta.find_undeclared_variables(environment.parse(_GENERATION_TAG.sub("", source))))
    except (TemplateSyntaxError, RecursionError):  # rendering refuses it too
        return frozenset()
