"""kvpress: presses that drop KV of the target's weights, in transformers."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from peers.answering import PeerAnswer
from peers.child import Child, started
from peers.passages import divide, plain

from presift.models.dtype import native_dtype

# The presses of children/kv_presses.py.
NAMES = ("snapkv", "ada-snapkv", "expected-attention", "kvzip")


class KvPress:
    """A press by its name; None keeps all KV."""

    def __init__(self, child: Child, press: str | None) -> None:
        self._child = child
        self._press = press

    @property
    def peak_mib(self) -> float | None:
        return self._child.peak_mib

    async def answer(
        self, messages: list[dict[str, Any]], max_kv_tokens: int | None, max_new_tokens: int
    ) -> PeerAnswer:
        divided, separator = divide({"messages": messages}), uuid.uuid4().hex
        parted = divided.prompt(divided.document + separator)["messages"]
        found = await self._child.ask(
            {
                "messages": [plain(message) for message in parted],
                "separator": separator,
                "press": self._press,
                "kv_tokens": max_kv_tokens,
                "max_new_tokens": max_new_tokens,
            }
        )
        return PeerAnswer(**found | {"token_ids": tuple(found["token_ids"])})


@asynccontextmanager
async def running(folder: Path, press: str | None) -> AsyncIterator[KvPress]:
    """kvpress with the model in `folder`, after a first answer that is not measured."""
    async with started("kvpress", "kv_presses.py", str(folder), native_dtype("cpu")) as child:
        peer = KvPress(child, None)
        await peer.answer([{"role": "user", "content": "Hello.\nWho?"}], None, 2)
        child.peak_mib = None
        yield KvPress(child, press)
