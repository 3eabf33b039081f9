"""The peers by their names: how each is started, and what its budget limits."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peers import kv_presses, longllmlingua, plain_sglang
from peers.answering import AnsweringPeer
from peers.bm25 import Bm25
from peers.passages import Peer
from peers.truncation import Truncation

from presift.models.folder import ModelFolder, resolve
from presift_client import Info, Model


@dataclass(frozen=True, slots=True)
class Places:
    """`models` has a folder for each model of the stack. `sglang` is the URL of a server to ask instead of starting
    one."""

    models: Path
    sglang: str | None = None


@dataclass(frozen=True, slots=True)
class Models:
    """The models of the stack that `info` describes."""

    info: Info
    places: Places

    def target(self) -> ModelFolder:
        """Raises ValueError if it is not there, or has other weights than the stack's target."""
        return self._folder(self.info.target, "target")

    def draft(self) -> ModelFolder:
        """As `target`."""
        if self.info.draft is None:
            raise ValueError("this peer needs the weights of a draft; the stack has none")
        return self._folder(self.info.draft, "draft")

    def _folder(self, model: Model, name: str) -> ModelFolder:
        home = self.places.models
        path = home / Path(model.id).name
        if not path.is_dir():
            raise ValueError(f"models is {home}, which has no folder {path.name}; the stack's {name} is {model.id}")
        found = resolve(str(path))
        if found.revision != model.revision:
            raise ValueError(
                f"models is {home}, whose {path.name} has revision {found.revision}; the stack's {name} has "
                f"{model.revision}"
            )
        return found


@dataclass(frozen=True, slots=True)
class Shortening:
    """A peer that shortens the text, which the target then reads. Its budget is of prompt tokens."""

    start: Callable[[Models], AbstractAsyncContextManager[Peer]]


@dataclass(frozen=True, slots=True)
class Answering:
    """A peer that answers. Its budget, if it takes one, is of KV tokens."""

    start: Callable[[Models], AbstractAsyncContextManager[AnsweringPeer]]
    takes_budget: bool


def _ready(peer: Callable[[], Peer]) -> Callable[[Models], AbstractAsyncContextManager[Peer]]:
    @asynccontextmanager
    async def start(models: Models) -> AsyncIterator[Peer]:
        yield peer()

    return start


def _plain_sglang(models: Models) -> AbstractAsyncContextManager[Any]:
    if models.places.sglang is not None:
        return plain_sglang.asked(models.places.sglang)
    return plain_sglang.started(models.target())


def _longllmlingua(models: Models) -> AbstractAsyncContextManager[Peer]:
    return longllmlingua.running(models.draft().path)


def _press(name: str | None) -> Callable[[Models], AbstractAsyncContextManager[AnsweringPeer]]:
    return lambda models: kv_presses.running(models.target().path, name)


PEERS: Mapping[str, Shortening | Answering] = {
    "truncation": Shortening(_ready(Truncation)),
    "bm25": Shortening(_ready(Bm25)),
    "longllmlingua": Shortening(_longllmlingua),
    "sglang": Answering(_plain_sglang, takes_budget=False),
    "kvpress-full": Answering(_press(None), takes_budget=False),
    **{f"kvpress-{name}": Answering(_press(name), takes_budget=True) for name in kv_presses.NAMES},
}
