"""The HTML templates of this folder, which share a style. All values are escaped."""

from __future__ import annotations

from functools import cache
from importlib import resources

import jinja2


@cache
def template(name: str) -> jinja2.Template:
    """A template by the name of its file."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(_source),
    )
    return environment.get_template(name)


def _source(name: str) -> str:
    return resources.files("presift.cli.render").joinpath(name).read_text(encoding="utf-8")
