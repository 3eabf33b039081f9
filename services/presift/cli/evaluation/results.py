"""The file of answers, one JSON object a line, by which an interrupted evaluation continues. It holds no prompts."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from presift_client import Generation

# How a line begins: another kind of file, given by mistake, must not be shortened.
_BEGINNING = b'{"arm": "'


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer with what it took: counts in tokens, times in milliseconds.

    `route` and `reason` are those of the decision: a request may be answered by another route than the arm's.
    `read_tokens` of the prompt were read, `kv_tokens` held. `first_reading`: no other arm had this prompt read by the
    same models before, so that it was in no cache by this evaluation.
    """

    text: str
    token_ids: tuple[int, ...]
    route: str
    reason: str
    prompt_tokens: int
    read_tokens: int
    kv_tokens: int
    coverage: float | None
    completion_tokens: int
    finish_reason: str
    ttft_ms: float
    total_ms: float
    first_reading: bool

    @property
    def token_ms(self) -> float | None:
        """Time per token after the first; None if there is none."""
        steps = self.completion_tokens - 1
        return (self.total_ms - self.ttft_ms) / steps if steps > 0 else None

    @property
    def is_cut(self) -> bool:
        """Whether the answer ended at its longest length."""
        return self.finish_reason == "length"


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that failed: the error's class and message. `again`: only this call failed, so that another run asks
    again; otherwise the service cannot answer the request, however often it is asked."""

    kind: str
    message: str
    again: bool = False


Result = Answer | Failure


def answer_of(generation: Generation, *, first_reading: bool) -> Answer:
    """What is kept of a generation."""
    decision, usage = generation.decision, generation.usage
    return Answer(
        text=generation.text,
        token_ids=generation.token_ids,
        route=decision.route,
        reason=decision.reason,
        prompt_tokens=decision.prompt_tokens,
        read_tokens=decision.kept_tokens,
        kv_tokens=usage.kv_tokens,
        coverage=decision.coverage if usage.coverage is None else usage.coverage,
        completion_tokens=usage.completion_tokens,
        finish_reason=usage.finish_reason,
        ttft_ms=usage.ttft_ms,
        total_ms=usage.total_ms,
        first_reading=first_reading,
    )


class Key(NamedTuple):
    """What a result belongs to: the digest of the prompt, and the name of the arm."""

    prompt: str
    arm: str


class ResultFile:
    """The results with the same `settings` (a digest); those with others stay in the file. Use it in a `with` block.
    `prompt_tokens` are the lengths that are known, by the digest of the prompt.

    Raises ValueError, naming the line, for a file of another kind, and OSError.
    """

    def __init__(self, path: Path, settings: str) -> None:
        self._settings = settings
        self.results: dict[Key, Result] = {}
        self.prompt_tokens: dict[str, int] = {}
        self._file = path.open("ab+")
        try:
            self._read(path)
        except ValueError:
            self._file.close()
            raise

    def add(self, key: Key, example_id: str, result: Result) -> None:
        """Write a result at once, so that it is there however this process ends."""
        kind = "answer" if isinstance(result, Answer) else "error"
        line: dict[str, Any] = {"arm": key.arm, "prompt": key.prompt, "settings": self._settings, "id": example_id}
        line[kind] = asdict(result)
        self._file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        self._put(key, result)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def _read(self, path: Path) -> None:
        """Read all lines. An incomplete last line was interrupted, and is removed."""
        self._file.seek(0)
        end = 0
        for number, raw in enumerate(self._file.readlines(), 1):
            found = _parse(raw)
            if found is None and not raw.endswith(b"\n") and raw.startswith(_BEGINNING[: len(raw)]):
                self._file.truncate(end)
                break
            if found is None:
                raise ValueError(f"{path}, line {number} is not a result of presift eval; give another --results")
            end += len(raw)
            key, settings, result = found
            if settings == self._settings:
                self._put(key, result)
            if not raw.endswith(b"\n"):
                self._file.write(b"\n")

    def _put(self, key: Key, result: Result) -> None:
        self.results[key] = result
        if isinstance(result, Answer):
            self.prompt_tokens[key.prompt] = result.prompt_tokens


def _parse(raw: bytes) -> tuple[Key, str, Result] | None:
    """A line's key, settings and result; None if it is no result."""
    try:
        line = json.loads(raw)
        return Key(line["prompt"], line["arm"]), line["settings"], _result(line)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _result(line: dict[str, Any]) -> Result:
    if "error" in line:
        return Failure(**line["error"])
    values = line["answer"]
    return Answer(**values | {"token_ids": tuple(values["token_ids"])})
