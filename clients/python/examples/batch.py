"""Answer a file of prompts, one JSON object a line: python batch.py IN.jsonl OUT.jsonl [--concurrency N]

A line of IN has "id" and what `AsyncClient.generate` takes: {"id": "q1", "messages": [...], "max_kv_tokens": 512}. A
line of OUT has the id with text, decision and usage, or with the error of a request that cannot be answered. Run it
again and only what OUT lacks is done: after a Ctrl-C or a crash, and what was overloaded, unavailable or late. A key,
where the service asks for one, is read from PRESIFT_API_KEY.
"""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from presift_client import (
    AsyncClient,
    BudgetExceeded,
    InvalidRequest,
    Overloaded,
    PresiftError,
    RouteUnsupported,
    Unavailable,
)

ATTEMPTS = 5
PAUSE_S = 1.0
# What is the request's own fault will be so tomorrow; anything else is left for another run.
LASTING = (InvalidRequest, BudgetExceeded, RouteUnsupported, TypeError, ValueError)


def done_in(path: Path) -> set[str]:
    """The ids that are answered. A last line that a crash has cut is taken out of the file."""
    if not path.exists():
        return set()
    whole, _, rest = path.read_bytes().rpartition(b"\n")
    if rest:
        path.write_bytes(whole + b"\n" if whole else b"")
    return {json.loads(line)["id"] for line in whole.splitlines()}


def left_in(path: Path, done: set[str]) -> Iterator[dict[str, Any]]:
    """The requests that are not done yet, read as they are needed. Raises ValueError, naming the line."""
    seen = set(done)
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            request = parsed(line)
            if not isinstance(request, dict) or not isinstance(request.get("id"), str):
                raise ValueError(f'{path}, line {number}: a request is a JSON object whose "id" is a string')
            if request["id"] not in seen:
                seen.add(request["id"])
                yield request


def parsed(line: str) -> Any:
    """None for what is no JSON."""
    try:
        return json.loads(line)
    except ValueError:
        return None


async def answer(client: AsyncClient, request: dict[str, Any]) -> dict[str, Any]:
    """What goes into OUT. Raises PresiftError for what may pass and does not."""
    options = {"deadline_s": 600.0} | {name: value for name, value in request.items() if name != "id"}
    for attempt in range(1, ATTEMPTS + 1):
        try:
            generation = asdict(await client.generate(**options))
            return {"id": request["id"]} | {name: generation[name] for name in ("text", "decision", "usage")}
        except LASTING as error:
            return {"id": request["id"], "error": {"kind": type(error).__name__, "message": str(error)}}
        except (Overloaded, Unavailable) as error:
            if attempt == ATTEMPTS:
                raise
            await asyncio.sleep(error.retry_after_s or PAUSE_S * attempt)
    raise AssertionError("unreachable")


async def work(client: AsyncClient, requests: Iterator[dict[str, Any]], out: TextIO) -> int:
    """One of the workers that share `requests`. Returns how many it had to leave."""
    left = 0
    for request in requests:
        try:
            line = json.dumps(await answer(client, request), ensure_ascii=False)
        except PresiftError as error:
            print(f"{request['id']}: {error}", file=sys.stderr)
            left += 1
            continue
        out.write(f"{line}\n")
        out.flush()
    return left


async def run(told: argparse.Namespace) -> int:
    done = done_in(told.out)
    requests = left_in(told.requests, done)
    async with AsyncClient(told.address, api_key=os.environ.get("PRESIFT_API_KEY")) as client:
        with told.out.open("a", encoding="utf-8") as out:
            async with asyncio.TaskGroup() as group:
                workers = [group.create_task(work(client, requests, out)) for _ in range(told.concurrency)]
    left = sum(worker.result() for worker in workers)
    print(f"{len(done)} were done, {len(done_in(told.out)) - len(done)} are new, {left} are left")
    return 1 if left else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("requests", type=Path, metavar="IN.jsonl")
    parser.add_argument("out", type=Path, metavar="OUT.jsonl")
    parser.add_argument("--concurrency", type=int, default=8, help="requests at once (default: 8)")
    parser.add_argument("--address", default="127.0.0.1:50051")
    told = parser.parse_args()
    try:
        return asyncio.run(run(told))
    except* KeyboardInterrupt:
        print(f"stopped; the same command goes on with what {told.out} lacks", file=sys.stderr)
    except* (ValueError, OSError) as errors:
        print(*errors.exceptions, sep="\n", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
