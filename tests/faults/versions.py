"""An earlier version of presift beside this one: where it comes from, what both are asked, and what must be equal."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import redis.asyncio as redis

from presift.core.plan import Route

from .stack import code_of

ROOT = Path(__file__).parents[2]
# The earlier version while there is no tag: main at 09:30 UTC on 2026-11-30. It has all services and today's folders.
# What came after it changed the RPC servers (parsing outside the event loop, the bounds of memory), target's plugin
# and the clients' errors.
EARLIER = "6210033d6cc638fb887440c06e352cda1475a290"
_PARTS = ("services", "clients/python", "tests/echo_engine.py")
_CLIENT_S = 120.0


class NoEarlierVersion(Exception):
    """This copy of the repository has no commit of the earlier version; the message says how to get it."""


def earlier_commit(wanted: str | None = None, root: Path = ROOT) -> str:
    """The commit of `wanted` (a Git ref), else of the newest tag before this commit, else EARLIER. Raises
    NoEarlierVersion."""
    tag = _git(root, "describe", "--tags", "--abbrev=0", "HEAD^").stdout.decode().strip()
    ref = wanted or tag or EARLIER
    found = _git(root, "rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}")
    if found.returncode == 0:
        return found.stdout.decode().strip()
    shallow = _git(root, "rev-parse", "--is-shallow-repository")
    if shallow.returncode:
        raise NoEarlierVersion(f"{root} has no history: {shallow.stderr.decode().strip()}")
    hint = ": the clone is shallow, try git fetch --unshallow --tags" if shallow.stdout.strip() == b"true" else ""
    raise NoEarlierVersion(f"{root} has no commit {ref}{hint}")


def unpack(commit: str, folder: Path) -> Path:
    """Write the services, the client and the echo engine of that commit into `folder`."""
    archive = _git(ROOT, "archive", commit, *_PARTS)
    assert archive.returncode == 0, archive.stderr.decode()
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")
    return folder


def git_environment() -> dict[str, str]:
    """This process's, without what names another repository (in a hook of Git) or translates messages."""
    return {name: value for name, value in os.environ.items() if not name.startswith("GIT_")} | {"LC_ALL": "C"}


def _git(root: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    try:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, check=False, env=git_environment())
    except FileNotFoundError as error:
        return subprocess.CompletedProcess(arguments, 127, b"", str(error).encode())


@dataclass(frozen=True, slots=True)
class Version:
    """One version: its name for reports, and the environment that runs its code."""

    name: str
    code: dict[str, str]

    async def call(self, address: str, calls: Sequence[dict[str, Any]]) -> list[Any]:
        """The results of gRPC calls with this version's client, as JSON values: see `version_client`."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "version_client", address),
            env={**os.environ, **self.code},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(_CLIENT_S):
                out, err = await process.communicate(json.dumps(calls).encode())
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == 0, err.decode()
        results: list[Any] = json.loads(out)
        return results


NEW = Version("new", code_of(ROOT))

# A line "CALL name arguments" of an answer is a tool call to the echo engine, and an answer repeats its prompt.
_CALL = 'CALL look {"place": "Bern"}\n'
_FACTS = "".join(f"The {n}th number is {n * n}. " for n in range(12))
_TEXT = f"{_FACTS}\n{_CALL}What is the 5th number?"
_TOOL = {"name": "look", "description": "Look it up.", "parameters": {"type": "object"}}
_CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": f"Here:\n{_CALL}{_FACTS}"},
    {"role": "assistant", "content": "Noted."},
    {"role": "user", "content": "What is the 5th?"},
]
_IDS = [1 + n * n % 250 for n in range(300)]
_SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
_SHORT: dict[str, Any] = {"max_new_tokens": 24, "ignore_eos": True, "deadline_s": 60}


def grpc_calls() -> list[dict[str, Any]]:
    """What a mix is asked over gRPC: each route, each kind of prompt and each form of an answer."""
    routes = [{"prompt": _TEXT, "route": route} for route in Route]
    others: list[dict[str, Any]] = [
        {"token_ids": _IDS, "protected_spans": [(0, 4)], "route": Route.SPEC_PC},
        {"messages": _CHAT, "tools": [_TOOL], "route": Route.FULL, "max_new_tokens": 240},
        {"messages": _CHAT, "tools": [_TOOL], "route": Route.SPEC_KV},
        {"prompt": _TEXT, "route": Route.SPEC_PC, "max_prompt_tokens": 190, "strict": True},
        {"prompt": _TEXT, "route": Route.SPEC_KV, "kv_selection": "draft_mask"},
        {"prompt": _TEXT, "route": Route.SPEC_PC, "auto_coverage": 0.5, "auto_min_tokens": 20, "auto_max_tokens": 90},
        {"prompt": _TEXT, "route": Route.FULL, "choices": 2, "top_logprobs": 2, "seed": 7, "temperature": 0.5},
        {"prompt": _TEXT, "route": Route.FULL, "stop": ["number"], "json_schema": _SCHEMA, "migrate": True},
    ]
    explained = [{"prompt": _TEXT, "route": route} for route in Route]
    explained[2] |= {"include_kv_mask": True, "span_per_token": True}
    asked: list[dict[str, Any]] = [{"method": "generate", **_SHORT, **each} for each in (*routes, *others)]
    for number, call in enumerate(asked):  # no two texts begin alike, so that none finds what another one has cached
        if "prompt" in call:
            call["prompt"] = f"{number}. {call['prompt']}"
    return [
        *asked,
        *({"method": "explain", "deadline_s": 60, **each} for each in explained),
        {"method": "info"},
    ]


def http_calls() -> list[tuple[str, dict[str, Any]]]:
    """What a mix is asked over HTTP: paths and bodies. Those with "stream" are streamed."""
    function = [{"type": "function", "function": _TOOL}]
    chats = [{"messages": _CHAT, "max_tokens": 24, "presift": {"route": route}} for route in Route]
    tools = {"messages": _CHAT, "max_tokens": 240, "tools": function, "presift": {"route": Route.FULL}}
    ids = {"prompt": _IDS, "max_tokens": 24, "presift": {"route": Route.SPEC_PC}}
    said = {"input": _TEXT, "max_output_tokens": 24, "presift": {"route": Route.SPEC_PC}}
    message = {"messages": _CHAT[1:], "max_tokens": 24, "presift": {"route": Route.SPEC_PC}}
    whole = [
        *(("/v1/chat/completions", each) for each in (*chats, tools)),
        ("/v1/completions", ids),
        ("/v1/responses", said),
        ("/v1/messages", message),
    ]
    return [*whole, *((path, {**body, "stream": True}) for path, body in whole)]


async def ask_http(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> Any:
    """The answer as a JSON value; of a stream, its events with texts joined. Raises AssertionError for an error."""
    response = await client.post(path, json={"model": "echo", "temperature": 0, **body})
    assert response.status_code == 200, (path, body, response.text)
    if "stream" not in body:
        return response.json()
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    return _joined([json.loads(line) for line in lines if line != "[DONE]"])


def _joined(events: Sequence[Any]) -> dict[str, Any]:
    """The strings of a stream's events, joined by where they are: time decides how a text is cut, and how many items a
    list has."""
    texts: dict[str, Any] = {}
    for place, value in (pair for event in events for pair in _leaves(event, str(event.get("type", "")))):
        if place.endswith("[]"):
            continue
        if isinstance(value, str) and place.rpartition(".")[2] in _PIECES:
            texts[place] = texts.get(place, "") + value
        else:
            texts[place] = value
    return texts


_PIECES = ("content", "text", "arguments", "delta", "partial_json", "reasoning_content")
# What may differ between two mixes, or two calls of one: ids, times, what caches held, and words for people.
_VOLATILE = re.compile(
    r"_ms$|_at$|^(id|created|.*_id|cache|.*cached_tokens|.*input_tokens|reused_entry|detail|warnings|speeds|"
    r"replicas|routes|supported_routes|version|sequence_number)$"
)


def _leaves(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            if not _VOLATILE.search(name):
                yield from _leaves(inner, f"{place}.{name}")
    elif isinstance(value, list):
        yield f"{place}[]", len(value)
        for number, inner in enumerate(value):
            yield from _leaves(inner, f"{place}[{number}]")
    else:
        yield place, value


def differences(one: Any, other: Any) -> list[str]:
    """Where two answers are not equal, of the fields that both have: a later version may say more."""
    first, second = dict(_leaves(one, "")), dict(_leaves(other, ""))
    return [
        f"{place}: {first[place]!r}, {second[place]!r}"
        for place in first
        if place in second and first[place] != second[place]
    ]


def shortcomings(answers: Sequence[Any]) -> list[str]:
    """Why these answers of a mix show too little: over gRPC and over HTTP each route is taken, and a tool called."""
    found = []
    calls = len(grpc_calls())
    for api, told in (("gRPC", answers[:calls]), ("HTTP", answers[calls:])):
        leaves = dict(pair for number, each in enumerate(told) for pair in _leaves(each, f"[{number}]"))
        routes = {value for place, value in leaves.items() if place.endswith("decision.route")}
        found += [f"no {route} over {api}" for route in sorted(set(Route) - routes)]
        if '{"place": "Bern"}' not in leaves.values():
            found.append(f"no tool call over {api}")
    return found


Values = dict[bytes, tuple[bytes, int]]


async def stored(link: redis.Redis) -> Values:
    """The cached values by key, with the time when each expires: one that is stored again expires later."""
    keys = [key async for key in link.scan_iter(match="presift:v*") if not key.endswith(b":lease")]
    return {key: (await link.get(key), await link.execute_command("PEXPIRETIME", key)) for key in keys}
