"""What the tests of all libraries share."""

from __future__ import annotations

import json

from pydantic import BaseModel

MODEL = "scripted"
# The chat of a plain answer, and the answer (scripted_engine.py).
HELLO = "Hello there."
# More tokens than the context of the scripted model.
TOO_LONG = "word " * 20_000
# The result of the tool, and the answer to it, if the function was really called with the model's arguments.
SUM = "5"
SUM_ANSWER = "The tool said 5."
ADD_TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two integers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
            "additionalProperties": False,
        },
    },
}


class Person(BaseModel):
    """A person."""

    name: str
    age: int


PERSON = Person(name="Ada", age=36)


def say(text: str) -> str:
    """The user's message whose answer is `text`."""
    return f"Reply with exactly {json.dumps(text)}"


class Adder:
    """A tool that remembers its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def add(self, a: int, b: int) -> int:
        self.calls.append((a, b))
        return a + b
