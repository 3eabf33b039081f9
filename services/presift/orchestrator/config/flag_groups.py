"""Groups the flags in `--help` by the part of the settings that declares them."""

from __future__ import annotations

from inspect import get_annotations, getdoc
from typing import Any

from pydantic_settings import BaseSettings, CliSettingsSource

_COMMON = "Server, TLS and telemetry"


def grouped_flags(settings: type[BaseSettings]) -> CliSettingsSource[Any]:
    """The command line as a source of `settings`, not parsed yet. A part's docstring is the title of its group."""
    titles = _titles(settings)
    groups: dict[str, Any] = {}

    def add_argument(parser: Any, *flags: str, **options: Any) -> Any:
        if "dest" not in options:  # --help
            return parser.add_argument(*flags, **options)
        if not groups:  # all at once, in the order of the parts
            groups.update({title: parser.add_argument_group(title) for title in dict.fromkeys(titles.values())})
        return groups[titles[options["dest"]]].add_argument(*flags, **options)

    source = CliSettingsSource[Any](settings, add_argument_method=add_argument)
    source.root_parser.usage = "%(prog)s [--FLAG VALUE] ..."  # listing every flag would fill a screen
    source.root_parser.description = getdoc(settings)
    return source


def _titles(settings: type[BaseSettings]) -> dict[str, str]:
    """Field -> title of its group, part by part."""
    titles: dict[str, str] = {}
    for part in settings.__mro__:
        title = _COMMON if issubclass(part, BaseSettings) else part.__doc__ or part.__name__
        titles |= {
            name: title for name in get_annotations(part) if name in settings.model_fields and name not in titles
        }
    return titles
