"""From flags to the options of a client's request; the files that flags name."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from presift.cli.flags import PromptFlags, RequestFlags


def budget_options(flags: RequestFlags) -> dict[str, Any]:
    """The client's options for the flags that were given."""
    given = {name: value for name, value in asdict(flags).items() if value is not None}
    if "compress_above" in given:
        given["compress_above_tokens"] = given.pop("compress_above")
    return given


def prompt_options(flags: PromptFlags) -> dict[str, Any]:
    """A text prompt, or a chat in which the documents come before the question and are marked as documents.

    Raises ValueError unless there is either a prompt or a question, OSError for a file that cannot be read.
    """
    files = flags.document or []
    if (flags.prompt is None) == (flags.question is None):
        raise ValueError("give either a PROMPT or --question")
    if flags.prompt is not None:
        if files or flags.system or flags.tools:
            raise ValueError("--document, --system and --tools need --question instead of a PROMPT")
        return {"prompt": flags.prompt}
    parts: list[dict[str, Any]] = [{"text": read_text(path) + "\n\n", "document": True} for path in files]
    content = [*parts, {"text": flags.question, "protected": True}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if flags.system is not None:
        messages.insert(0, {"role": "system", "content": flags.system})
    return {"messages": messages, **tools_options(flags.tools)}


def form_options(json_schema: Path | None, choices: int) -> dict[str, Any]:
    """What the answer must look like, and the number of answers.

    Raises ValueError for a file that is not JSON, OSError for one that cannot be read.
    """
    options: dict[str, Any] = {} if choices == 1 else {"choices": choices}
    return options if json_schema is None else options | {"json_schema": read_json(json_schema)}


def tools_options(tools: Path | None) -> dict[str, Any]:
    """Raises as `form_options` does, also for JSON that is not a list."""
    if tools is None:
        return {}
    found = read_json(tools)
    if not isinstance(found, list):
        raise ValueError(f"{tools} is not a JSON list of tools")
    return {"tools": found}


def read_json(path: Path) -> Any:
    """The JSON value in a file, or on stdin for `-`. Raises ValueError, naming the file, unless it is one."""
    try:
        return json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error})") from None


def read_text(path: Path) -> str:
    """The text of a file, or of stdin for `-`. Raises ValueError, naming the file, unless it is UTF-8."""
    raw = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start})") from None


def check_writable(path: Path | None) -> None:
    """Raise ValueError if the file cannot be written, before any request is sent."""
    if path is None:
        return
    if path.is_dir():
        raise ValueError(f"{path} cannot be written: it is a folder")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"{path} cannot be written: its folder does not exist")
