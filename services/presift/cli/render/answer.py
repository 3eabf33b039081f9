"""`presift generate`: from flags to a request, from events to the terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from presift_client import Client, Decision, Info, PermissionDenied, PresiftError, Replica, Unauthenticated, Usage
from presift_client.requests import Options


def options(**flags: Any) -> Options:
    """The flags that were given."""
    return cast(Options, {name: value for name, value in flags.items() if value is not None})


def prompt_options(prompt: str | None, question: str | None, files: Sequence[Path], system: str | None) -> Options:
    """A text prompt, or a chat in which the documents stand before the question and are marked as such.

    Raises ValueError unless there is either a prompt or a question, OSError for a file that cannot be read.
    """
    if (prompt is None) == (question is None):
        raise ValueError("give either a PROMPT or --question")
    if prompt is not None:
        if files or system:
            raise ValueError("--document and --system go with --question")
        return {"prompt": prompt}  # type: ignore[typeddict-unknown-key]
    parts: list[dict[str, Any]] = [{"text": read(path) + "\n\n", "document": True} for path in files]
    messages: list[dict[str, Any]] = [{"role": "user", "content": [*parts, {"text": question, "protected": True}]}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return {"messages": messages}


def read(path: Path) -> str:
    """The text of a file, or of stdin for `-`. Raises ValueError, naming the file, unless it is UTF-8."""
    raw = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start})") from None


def show_stream(client: Client, request: Options) -> None:
    """The answer to stdout as it comes; decision and usage to stderr."""
    for event in client.stream(**request):
        if isinstance(event, Decision):
            print(decision_line(event), file=sys.stderr, flush=True)
        elif isinstance(event, Usage):
            print(file=sys.stdout, flush=True)
            print(usage_line(event), file=sys.stderr)
        else:
            print(event.text, end="", flush=True)


def show_json(client: Client, request: Options) -> None:
    """One JSON object to stdout."""
    print(json.dumps(asdict(client.generate(**request)), ensure_ascii=False))


def served(client: Client) -> Info | None:
    """What stands behind an orchestrator, None where none answers. Closes the client. Raises PresiftError where one
    answers and does not let us in."""
    with client:
        try:
            return client.info(deadline_s=1.0)
        except (Unauthenticated, PermissionDenied):
            raise
        except PresiftError:
            return None


def replica_line(replica: Replica) -> str:
    """How a replica stands, in one line."""
    health = "healthy" if replica.healthy else "away"
    breaker = "" if replica.breaker == "closed" else f", breaker {replica.breaker}"
    unused = f", not used: {replica.unused}" if replica.unused else ""
    return f"{replica.address} {health}{breaker}, {replica.in_flight} in flight{unused}"


def decision_line(decision: Decision) -> str:
    """What was applied, in one line."""
    coverage = "" if decision.coverage is None else f", coverage {decision.coverage:.2f}"
    return (
        f"[{decision.route}: {decision.reason} ({decision.detail}); "
        f"kept {decision.kept_tokens} of {decision.prompt_tokens} tokens{_kv(decision)}{coverage}, "
        f"cache {decision.cache}]"
    )


def usage_line(usage: Usage) -> str:
    """What it cost, in one line."""
    return (
        f"[first token after {usage.ttft_ms:.0f} ms ({usage.target_ttft_ms:.0f} ms in the target), "
        f"{usage.completion_tokens} tokens in {usage.total_ms:.0f} ms, finished by {usage.finish_reason}; "
        f"held {usage.kv_tokens} KV tokens for {usage.prompt_tokens} prompt tokens, "
        f"{usage.cached_tokens} were cached{_selected(usage)}]"
    )


def _kv(decision: Decision) -> str:
    """What was planned for the KV, where some is dropped."""
    if decision.kv_capacity is None:
        return ""
    parts = [f"{decision.kv_tokens} KV tokens to hold (C {decision.kv_capacity}, {decision.kv_selection})"]
    parts += ["full prefix kept" if decision.keep_full_prefix else "full prefix freed"]
    if decision.prefill_ms:
        parts.append(f"read in {decision.prefill_ms:.0f} ms while the draft worked for {decision.draft_ms:.0f} ms")
    return "".join(f", {part}" for part in parts)


def _selected(usage: Usage) -> str:
    """What the target says of its selection, where it made or found one."""
    if usage.reused_entry:
        chosen = ", compressed entry reused"
    elif usage.score_ms or usage.publish_ms:
        chosen = f", scored in {usage.score_ms:.0f} ms, published in {usage.publish_ms:.0f} ms"
    else:
        chosen = ""
    return chosen if usage.coverage is None else f"{chosen}, coverage {usage.coverage:.2f}"
