"""YAML as plain data, with the line of each value.

By hand on PyYAML: ruamel.yaml's round-trip loader knows lines too, but accepts unknown tags and lists as keys, turns
anchored booleans into 0 and 1, gives invalid dates no line, and takes twice as long for 1 MiB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

Path = Sequence[str | int]
_TEXT = "tag:yaml.org,2002:str"
# Limit after aliases and merges are expanded: one kilobyte of YAML can expand to a billion values.
MAX_VALUES = 100_000
# Of brackets on top of each other. Each costs PyYAML the time of all that are open.
MAX_NESTED = 32
# Longer numbers are no settings. PyYAML reads those of base 60 (1:59:59) in quadratic time.
MAX_NUMBER_CHARACTERS = 64
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")

# The line and the value of a key or item.
_Found = tuple[int, yaml.Node]


class InvalidYaml(ValueError):
    """The text is not a YAML document; `line` counts from 1."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


@dataclass(frozen=True, slots=True)
class _Keys:
    """Of a mapping: its keys by their text, and the first one that is no text."""

    by_name: dict[str, _Found]
    other: _Found | None

    def find(self, name: str) -> _Found | None:
        """pydantic names a key that is not text by its Python value: `yes` becomes True."""
        return self.by_name.get(name, self.other)


@dataclass(frozen=True, slots=True)
class Document:
    """`data`: plain values, None for an empty document. `root`: the parsed nodes, which hold the lines."""

    data: Any
    root: yaml.Node | None
    # The keys of the mappings that were looked at: a file may have an error in each of thousands.
    _keys: dict[int, _Keys] = field(default_factory=dict, repr=False, compare=False)

    def line(self, path: Path) -> int:
        """The line, from 1, of the key or item at `path`, or of its innermost parent that exists."""
        node, line = self.root, 1
        for part in path:
            found = self._child(node, part)
            if found is None:
                break
            line, node = found
        return line

    def _child(self, node: yaml.Node | None, part: str | int) -> _Found | None:
        """None if there is none."""
        if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            return _line(node.value[part]), node.value[part]
        if isinstance(node, yaml.MappingNode):
            if id(node) not in self._keys:
                self._keys[id(node)] = _keys_of(node)
            return self._keys[id(node)].find(str(part))
        return None


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # no stubs in the lock
    """SafeLoader whose errors have a line for invalid dates and numbers too."""

    def fetch_flow_collection_start(self, token: type[yaml.Token]) -> None:
        if self.flow_level >= MAX_NESTED:
            raise yaml.scanner.ScannerError(None, None, "nested too deeply", self.get_mark())
        super().fetch_flow_collection_start(token)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if node.tag in _NUMBERS and len(node.value) > MAX_NUMBER_CHARACTERS:
            message = f"a number of more than {MAX_NUMBER_CHARACTERS} characters"
            raise yaml.constructor.ConstructorError(None, None, message, node.start_mark)
        try:
            return super().construct_object(node, deep)
        except (ValueError, OverflowError) as error:
            raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from None


def read_document(text: str) -> Document:
    """Raises InvalidYaml, also for a repeated key and for aliases that expand to more than MAX_VALUES."""
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            return Document(None, None)
        if _count_values(root, {}) > MAX_VALUES:
            raise InvalidYaml(1, f"expands to more than {MAX_VALUES} values")
        _check_keys(root, set())
        return Document(loader.construct_document(root), root)
    except yaml.reader.ReaderError as error:
        raise InvalidYaml(len(text[: error.position].split("\n")), f"unreadable character: {error.reason}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise InvalidYaml(mark.line + 1 if mark else 1, error.problem or "not YAML") from None
    except RecursionError:
        raise InvalidYaml(1, "nested too deeply") from None


def _count_values(node: yaml.Node, known: dict[int, int]) -> int:
    """The number of values below `node`, counting each as often as aliases repeat it."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = 1  # for a node that contains itself, which PyYAML does not copy
        known[id(node)] = 1 + sum(_count_values(child, known) for _, child in _children(node))
    return known[id(node)]


def _check_keys(node: yaml.Node, seen: set[int]) -> None:
    """Raise InvalidYaml for a repeated key: YAML would silently take the last."""
    if id(node) in seen or isinstance(node, yaml.ScalarNode):
        return
    seen.add(id(node))
    keys: set[str] = set()
    for key, value in _children(node):
        if isinstance(key, yaml.ScalarNode):
            if key.value in keys:
                raise InvalidYaml(_line(key), f"duplicate key {key.value}")
            keys.add(key.value)
        _check_keys(value, seen)


def _children(node: yaml.Node) -> list[tuple[yaml.Node | None, yaml.Node]]:
    if isinstance(node, yaml.MappingNode):
        return list(node.value)
    return [(None, item) for item in node.value]


def _keys_of(node: yaml.MappingNode) -> _Keys:
    found = [(key, (_line(key), value)) for key, value in node.value]
    # Merged keys (`<<`) come before the keys that override them.
    by_name = {key.value: place for key, place in found if isinstance(key, yaml.ScalarNode)}
    return _Keys(by_name, next((place for key, place in found if key.tag != _TEXT), None))


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
