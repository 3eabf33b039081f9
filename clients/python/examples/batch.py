"""Answer a file of prompts, one JSON object a line: python batch.py IN.jsonl OUT.jsonl [--concurrency N]

A line of IN has "id" and the options of `AsyncClient.generate`: {"id": "q1", "messages": [...], "max_kv_tokens": 512}.
A line of OUT has the id with text, decision and usage, or with the error of a request that cannot be answered. A second
run sends only the requests that OUT lacks: those after a Ctrl-C or a crash, and those that failed because the service
was overloaded, unavailable or too slow. The API key, if the service requires one, is read from PRESIFT_API_KEY.
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
# Errors of the request itself, which a retry does not fix. Other failures are left for another run.
PERMANENT = (InvalidRequest, BudgetExceeded, RouteUnsupported, TypeError, ValueError)


def done_in(path: Path) -> set[str]:
    """The ids that OUT has. Removes an incomplete last line, which a crash may leave."""
    if not path.exists():
        return set()
    whole, _, rest = path.read_bytes().rpartition(b"\n")
    if rest:
        path.write_bytes(whole + b"\n" if whole else b"")
    return {json.loads(line)["id"] for line in whole.splitlines()}


def remaining(path: Path, done: set[str]) -> Iterator[dict[str, Any]]:
    """The requests that are not done, read lazily. Raises ValueError, naming the line."""
    seen = set(done)
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            request = parse(line)
            if not isinstance(request, dict) or not isinstance(request.get("id"), str):
                raise ValueError(f'{path}, line {number}: a request is a JSON object whose "id" is a string')
            if request["id"] not in seen:
                seen.add(request["id"])
                yield request


def parse(line: str) -> Any:
    """The JSON value of a line, or None for invalid JSON."""
    try:
        return json.loads(line)
    except ValueError:
        return None


async def answer(client: AsyncClient, request: dict[str, Any]) -> dict[str, Any]:
    """The line for OUT. Raises PresiftError for an error that another run may not meet."""
    options = {"deadline_s": 600.0} | {name: value for name, value in request.items() if name != "id"}
    for attempt in range(1, ATTEMPTS + 1):
        try:
            generation = asdict(await client.generate(**options))
            return {"id": request["id"]} | {name: generation[name] for name in ("text", "decision", "usage")}
        except PERMANENT as error:
            return {"id": request["id"], "error": {"kind": type(error).__name__, "message": str(error)}}
        except (Overloaded, Unavailable) as error:
            if attempt == ATTEMPTS:
                raise
            await asyncio.sleep(error.retry_after_s or PAUSE_S * attempt)
    raise AssertionError("unreachable")


async def work(client: AsyncClient, requests: Iterator[dict[str, Any]], out: TextIO) -> int:
    """One of the workers that share `requests`. Returns the number of requests that it could not finish."""
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


async def run(args: argparse.Namespace) -> int:
    done = done_in(args.out)
    requests = remaining(args.requests, done)
    async with AsyncClient(args.address, api_key=os.environ.get("PRESIFT_API_KEY")) as client:
        with args.out.open("a", encoding="utf-8") as out:
            async with asyncio.TaskGroup() as group:
                workers = [group.create_task(work(client, requests, out)) for _ in range(args.concurrency)]
    left = sum(worker.result() for worker in workers)
    print(f"{len(done)} were done, {len(done_in(args.out)) - len(done)} are new, {left} are left")
    return 1 if left else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("requests", type=Path, metavar="IN.jsonl")
    parser.add_argument("out", type=Path, metavar="OUT.jsonl")
    parser.add_argument("--concurrency", type=int, default=8, help="maximum concurrent requests (default: 8)")
    parser.add_argument("--address", default="127.0.0.1:50051")
    args = parser.parse_args()
    try:
        return asyncio.run(run(args))
    except* KeyboardInterrupt:
        print(f"stopped; run the same command again to continue with what {args.out} lacks", file=sys.stderr)
    except* (ValueError, OSError) as errors:
        print(*errors.exceptions, sep="\n", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
