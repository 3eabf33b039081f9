"""Places: where work is done, as speeds and prefixes are kept by: a model at a revision, and which replica of it."""

from __future__ import annotations

from presift.core.plan import ModelInfo

_MARK = "#"


def location_of(model: ModelInfo, replica: str = "") -> str:
    """Another revision is another model. `replica` is what a service calls its process, empty where it says nothing."""
    return f"{model.id}@{model.revision}{_MARK}{replica}"


def split_location(place: str) -> tuple[str, str]:
    """Model (id@revision) and replica; no replica has the mark in its name."""
    model, mark, replica = place.rpartition(_MARK)
    return (model, replica) if mark else (place, "")
