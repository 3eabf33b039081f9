"""/v1/models: the target, and the other names by which requests may name it, in OpenAI's or Anthropic's shape."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from presift.core.plan import ModelInfo
from presift.orchestrator.api.http.call import Call
from presift.orchestrator.api.http.errors import MODEL_NOT_FOUND, HttpError
from presift.orchestrator.domain.ports import TargetInfo

ANY_NAME = "*"


class ServedModels:
    """The target under its own id and under `aliases`; the alias `*` stands for any name."""

    def __init__(self, target: Callable[[], TargetInfo], aliases: str = "") -> None:
        """`aliases` are separated by commas."""
        self._target = target
        self._aliases = [name.strip() for name in aliases.split(",") if name.strip()]
        self._created = int(time.time())

    def find(self, name: str) -> ModelInfo:
        """Raises HttpError for another model: to answer with this one would silently replace it. Raises
        TargetUnavailable before the target has answered once."""
        target = self._target().model
        if name not in (target.id, *self._aliases) and ANY_NAME not in self._aliases:
            served = ", ".join([target.id, *self._aliases])
            raise HttpError(MODEL_NOT_FOUND, f"model '{name[:64]}' is not served here; served: {served}", "model")
        return target

    async def list(self, call: Call) -> None:
        names = dict.fromkeys([self._target().model.id, *(name for name in self._aliases if name != ANY_NAME)])
        models = [self._model_for(call, name) for name in names]
        page = {"has_more": False, "first_id": models[0]["id"], "last_id": models[-1]["id"]}
        await call.reply.send_json(200, {"data": models, **(page if _is_anthropics(call) else {"object": "list"})})

    async def retrieve(self, call: Call) -> None:
        name = str(call.path["model"])
        self.find(name)
        await call.reply.send_json(200, self._model_for(call, name))

    def _model_for(self, call: Call, name: str) -> dict[str, Any]:
        model = self._model(name)
        if not _is_anthropics(call):
            return model
        created_at = datetime.fromtimestamp(self._created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        named = {"type": "model", "id": name, "display_name": name, "created_at": created_at}
        return named | {"max_input_tokens": model["context_length"], "presift": model["presift"]}

    def _model(self, name: str) -> dict[str, Any]:
        target = self._target()
        presift = {
            "target": target.model.id,
            "context_tokens": target.model.context_tokens,
            "routes": sorted(target.supported),
        }
        model = {"id": name, "object": "model", "created": self._created, "owned_by": "presift"}
        # SGLang's and vLLM's name of the context length, and OpenRouter's.
        context = dict.fromkeys(("max_model_len", "context_length"), target.model.context_tokens)
        return model | {"root": target.model.id} | context | {"presift": presift}


def _is_anthropics(call: Call) -> bool:
    """Whether the caller's client is Anthropic's: the paths are the same, the shapes are not."""
    return "anthropic-version" in call.headers
