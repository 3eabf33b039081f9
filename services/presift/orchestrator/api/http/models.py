"""/v1/models: the target, and the names that it may be asked for by."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from presift.core.plan import ModelInfo
from presift.orchestrator.api.http.call import Call
from presift.orchestrator.api.http.statuses import MODEL_NOT_FOUND, HttpRefusal
from presift.orchestrator.domain.ports import TargetInfo

ANY_NAME = "*"


class ServedModels:
    """`aliases` stand for the target, too; `*` is any name. Its own id always does."""

    def __init__(self, target: Callable[[], TargetInfo], aliases: str = "") -> None:
        """`aliases` is a comma list."""
        self._target = target
        self._aliases = [name.strip() for name in aliases.split(",") if name.strip()]
        self._created = int(time.time())

    def named(self, name: str) -> ModelInfo:
        """Raises HttpRefusal for another model: an answer of this one would be a silent exchange. Raises
        TargetUnavailable before the target has answered once."""
        target = self._target().model
        if name not in (target.id, *self._aliases) and ANY_NAME not in self._aliases:
            served = ", ".join([target.id, *self._aliases])
            raise HttpRefusal(MODEL_NOT_FOUND, f"the model '{name[:64]}' is not served here; {served} is", "model")
        return target

    async def all(self, call: Call) -> None:
        names = dict.fromkeys([self._target().model.id, *(name for name in self._aliases if name != ANY_NAME)])
        await call.reply.json(200, {"object": "list", "data": [self._told(name) for name in names]})

    async def one(self, call: Call) -> None:
        name = str(call.path["model"])
        self.named(name)
        await call.reply.json(200, self._told(name))

    def _told(self, name: str) -> dict[str, Any]:
        target = self._target()
        presift = {
            "target": target.model.id,
            "context_tokens": target.model.context_tokens,
            "routes": sorted(target.supported),
        }
        known = {"id": name, "object": "model", "created": self._created, "owned_by": "presift"}
        return known | {"presift": presift}
