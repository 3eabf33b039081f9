"""The tenant that a caller names in its gRPC metadata or HTTP headers, proven or not."""

from __future__ import annotations

import re
from collections.abc import Iterable

from presift.core.errors import InvalidRequest
from presift.orchestrator.domain.request import TENANT_PATTERN

# The key of the metadata, and the name of the header.
TENANT_KEY = "presift-tenant"


def tenant_from_metadata(metadata: Iterable[tuple[str, str | bytes]] | None) -> str | None:
    """The tenant that the caller names, None if it names none. Raises InvalidRequest unless it is one valid name."""
    names = [str(value) for key, value in metadata or () if key == TENANT_KEY]
    if len(names) > 1:
        raise InvalidRequest(TENANT_KEY, f"given {len(names)} times", "given once")
    if names and re.fullmatch(TENANT_PATTERN, names[0]) is None:
        raise InvalidRequest(TENANT_KEY, repr(names[0][:64]), "1-64 of A-Z a-z 0-9 . _ -")
    return names[0] if names else None
