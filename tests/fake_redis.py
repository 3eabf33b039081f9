"""A Redis server as one dictionary, for tests with a clock of their own: the commands and scripts of presift's cache.

`tests/contract/cache/test_fake_redis.py` compares it with a real server.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from types import CodeType


@dataclass
class FakeRedis:
    """`now` is in seconds. A value lives until its time in `expires_s`."""

    now: Callable[[], float]
    values: dict[str, bytes] = field(default_factory=dict)
    expires_s: dict[str, float] = field(default_factory=dict)

    def execute(self, *command: str | bytes | int) -> object:
        """The reply to a command, as redis-py returns it."""
        name, *arguments = command
        if name == "EVAL":
            script, count, *rest = arguments
            return self._eval(str(script), [_text(each) for each in rest], int(count))
        reply = self._call(str(name), *arguments)
        return b"" if name == "GETRANGE" and reply is False else reply

    def get(self, key: str) -> bytes | None:
        """The value of a key that has not expired."""
        self._expire()
        return self.values.get(key)

    def _eval(self, script: str, arguments: list[str], count: int) -> object:
        keys, others = arguments[:count], arguments[count:]
        names: dict[str, object] = {
            "call": lambda name, *given: self._call(name.upper(), *given),
            "KEYS": dict(enumerate(keys, 1)),
            "ARGV": dict(enumerate(others, 1)),
        }
        exec(_python(script), names)
        reply = names["script"]()  # type: ignore[operator]
        return None if reply is False else reply

    def _call(self, name: str, *arguments: object) -> object:
        """The reply as a script sees it: False for nil, a text for bytes."""
        self._expire()
        key, *rest = map(_text, arguments)
        if name == "GET":
            return _text(self.values[key]) if key in self.values else False
        if name == "GETRANGE":
            return self.values[key][int(rest[0]) : int(rest[1]) + 1] if key in self.values else False
        if name == "DEL":
            self.expires_s.pop(key, None)
            return int(self.values.pop(key, None) is not None)
        if name == "PEXPIRE":
            if key in self.values:
                self.expires_s[key] = self.now() + int(rest[0]) / 1000
            return int(key in self.values)
        if name == "SET" and rest[1] == "PX":
            value = arguments[1]
            self.values[key] = value if isinstance(value, bytes) else _text(value).encode()
            self.expires_s[key] = self.now() + int(rest[2]) / 1000
            return True
        raise NotImplementedError(name)

    def _expire(self) -> None:
        for key in [key for key, end_s in self.expires_s.items() if end_s <= self.now()]:
            del self.values[key], self.expires_s[key]


def _text(value: object) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


@cache
def _python(script: str) -> CodeType:
    """A script of `local x = ...`, `if ... then return ... end`, calls and `return`, as a function of Python. In both
    languages nil (False here) is false, and a text that is not empty is true."""
    body = script.replace("~=", "!=").replace("redis.call(", "call(").replace("local ", "")
    body = re.sub(r"\bif (.+?) then return (.+?) end\b", r"if \1: return \2\n", body)
    lines = "\n".join(f"    {line.strip()}" for line in body.splitlines() if line.strip())
    return compile(f"def script():\n{lines}\n", "<script>", "exec")
