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

from presift_client import AsyncClient, Generation


async def results(address: str, calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    async with AsyncClient(address) as client:
        return [asdict(await _result(client, **call)) for call in calls]


async def _result(client: AsyncClient, method: str, **options: Any) -> Any:
    result: Any = await getattr(client, method)(**options)
    if isinstance(result, Generation):
        assert result.usage.completion_tokens, result
    return result


def main() -> None:
    told = asyncio.run(results(sys.argv[1], json.load(sys.stdin)))
    json.dump(told, sys.stdout, default=str)


if __name__ == "__main__":
    main()
