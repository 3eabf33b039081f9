"""Where the source of SGLang defines a name. Nothing is imported, so that it may be any version."""

from __future__ import annotations

import ast
from pathlib import Path


class SglangSource:
    """The packages in `folder`, each module read once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._modules: dict[Path, list[ast.stmt]] = {}

    def statements(self, path: str) -> list[ast.stmt]:
        """The statements that define a function, class or attribute; none if it is not defined where `path`, dotted,
        says."""
        names = path.split(".")
        for length in range(len(names) - 1, 0, -1):
            file = self._folder.joinpath(*names[: length - 1], f"{names[length - 1]}.py")
            if file.is_file():
                if file not in self._modules:
                    self._modules[file] = ast.parse(file.read_text(encoding="utf-8")).body
                return _definitions(self._modules[file], names[length:])
        return []


def _definitions(body: list[ast.stmt], names: list[str]) -> list[ast.stmt]:
    """The definitions in `body` of the first name (a property may have a setter), or of the next one in its body."""
    kinds = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    found = [each for each in body if isinstance(each, kinds) and each.name == names[0]]
    if len(names) > 1:
        return _definitions(found[-1].body, names[1:]) if found else []
    return [*found] or _assignments(body, names[0])


def _assignments(body: list[ast.stmt], name: str) -> list[ast.stmt]:
    """The statements of a class with `body` that assign an attribute: its field, and those of methods."""
    fields = [each for each in body if any(isinstance(to, ast.Name) and to.id == name for to in _targets(each))]
    methods = [each for each in body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]
    inner = [each for method in methods for each in ast.walk(method) if isinstance(each, ast.stmt)]
    return fields + [each for each in inner if any(_is_own(to, name) for to in _targets(each))]


def _targets(statement: ast.stmt) -> list[ast.AST]:
    """What a statement assigns."""
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    else:
        targets = [statement.target] if isinstance(statement, ast.AnnAssign | ast.AugAssign) else []
    return [
        node for target in targets for node in ast.walk(target) if isinstance(getattr(node, "ctx", None), ast.Store)
    ]


def _is_own(target: ast.AST, name: str) -> bool:
    """Whether `target` is `self.name`."""
    if not isinstance(target, ast.Attribute) or target.attr != name:
        return False
    return isinstance(target.value, ast.Name) and target.value.id == "self"
