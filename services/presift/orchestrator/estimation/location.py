"""Locations: the keys of learned costs and prefixes. A location is a model at a revision, and a replica of it."""

from __future__ import annotations

from presift.core.plan import ModelInfo

_MARK = "#"


def location_of(model: ModelInfo, replica: str = "") -> str:
    """A location. `replica` is the name that a service gives its process, empty if it gives none."""
    return f"{model.id}@{model.revision}{_MARK}{replica}"


def split_location(location: str) -> tuple[str, str]:
    """Model (id@revision) and replica. No replica has the mark in its name."""
    model, mark, replica = location.rpartition(_MARK)
    return (model, replica) if mark else (location, "")
