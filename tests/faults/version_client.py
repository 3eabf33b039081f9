"""A caller with one version's Python client: `python -m version_client ADDRESS` with that version's PYTHONPATH.

Reads a JSON list of calls from standard input, each an object of keyword arguments with "method" (generate, explain or
info), and writes a JSON list of the results. Calls are made one after another.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict
from typing import Any

from presift_client import AsyncClient


async def results(address: str, calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    async with AsyncClient(address) as client:
        return [asdict(await getattr(client, call.pop("method"))(**call)) for call in calls]


def main() -> None:
    # What JSON cannot hold (a mask's bytes, times) is written as Python shows it.
    json.dump(asyncio.run(results(sys.argv[1], json.load(sys.stdin))), sys.stdout, default=str)


if __name__ == "__main__":
    main()
