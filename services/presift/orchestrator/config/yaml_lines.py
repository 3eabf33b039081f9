"""YAML with its lines: plain data, and where in the text each part of it stands. Knows nothing of what it means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

Path = Sequence[str | int]
_TEXT = "tag:yaml.org,2002:str"
# What a document may stand for once its aliases and merges are followed: a kilobyte can stand for a billion values.
MAX_VALUES = 100_000


class BadYaml(ValueError):
    """The text is no YAML document; `line` counts from 1."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


@dataclass(frozen=True, slots=True)
class Document:
    """`data` as plain values, None where there is nothing; `root` for the lines."""

    data: Any
    root: yaml.Node | None

    def line(self, path: Path) -> int:
        """The line of the key or item at this path, or of the innermost part that there is; from 1."""
        node, line = self.root, 1
        for part in path:
            found = _child(node, part)
            if found is None:
                break
            line, node = found
        return line


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # no stubs in the lock
    """Safe, and what is no number or date although it looks like one has a line too."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except ValueError as error:
            raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from None


def read_document(text: str) -> Document:
    """Raises BadYaml, for a key given twice too, and for aliases that stand for too much."""
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            return Document(None, None)
        if _values(root, {}) > MAX_VALUES:
            raise BadYaml(1, f"stands for more than {MAX_VALUES} values")
        _refuse_twins(root, set())
        return Document(loader.construct_document(root), root)
    except yaml.reader.ReaderError as error:
        raise BadYaml(len(text[: error.position].split("\n")), f"unreadable character: {error.reason}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise BadYaml(mark.line + 1 if mark else 1, error.problem or "not YAML") from None
    except RecursionError:
        raise BadYaml(1, "nested too deeply") from None


def _values(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values the node stands for, each as often as an alias repeats it."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = 1  # where it lies within itself; PyYAML ties such knots without copying
        known[id(node)] = 1 + sum(_values(child, known) for _, child in _children(node))
    return known[id(node)]


def _refuse_twins(node: yaml.Node, seen: set[int]) -> None:
    """YAML would take the last of them without a word."""
    if id(node) in seen or isinstance(node, yaml.ScalarNode):
        return
    seen.add(id(node))
    keys: set[str] = set()
    for key, value in _children(node):
        if isinstance(key, yaml.ScalarNode):
            if key.value in keys:
                raise BadYaml(_line(key), f"{key.value} is given twice")
            keys.add(key.value)
        _refuse_twins(value, seen)


def _children(node: yaml.Node) -> list[tuple[yaml.Node | None, yaml.Node]]:
    if isinstance(node, yaml.MappingNode):
        return list(node.value)
    return [(None, item) for item in node.value]


def _child(node: yaml.Node | None, part: str | int) -> tuple[int, yaml.Node] | None:
    """Its line and what it holds."""
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return _line(node.value[part]), node.value[part]
    if isinstance(node, yaml.MappingNode):
        # What is merged in (`<<`) stands before what overrides it.
        found = [pair for pair in node.value if pair[0].value == str(part)][-1:]
        # pydantic names a key that is no text as Python would: `yes` as True.
        key, value = next(iter(found or [pair for pair in node.value if pair[0].tag != _TEXT]), (None, None))
        return None if key is None else (_line(key), value)
    return None


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
