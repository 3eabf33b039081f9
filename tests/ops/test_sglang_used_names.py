"""The list of the SGLang names that presift uses: complete, and each is used."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from presift.target.sglang_plugin.sglang_names import TESTED, hooked_functions
from presift.target.sglang_plugin.used_names import used_names

TARGET = Path(__file__).parents[2] / "services" / "presift" / "target"
FILES = [
    *sorted((TARGET / "sglang_plugin").glob("*.py")),
    TARGET / "sglang" / "seeds.py",
    TARGET / "cpu" / "weight_shapes.py",
]
LISTED = [path for version in TESTED for path in (*hooked_functions(version).values(), *used_names(version))]
# What presift calls SGLang's objects in those files, as variables or as attributes.
_OBJECTS = """
    scheduler _scheduler request scoring _current tree _tree tree_cache adder batch running_batch running received
    kv processor worker forward forward_mode info sampling_info runner layer allocator token_to_kv_pool_allocator
    pool _pool req_to_token_pool model_config model arguments server_args sampling sampling_params time_stats
    ipc_channels send_to_tokenizer batch_result_processor output_streamer tp_worker model_runner spec_algorithm
    group _group HookRegistry HookType AddReqResult cuda_graph_config"""
OBJECTS = set(_OBJECTS.split())
# A method of torch's modules, and a field of AbortReq, which is listed as a whole.
OTHERS = {"modules", "abort_all"}


def used(source: str) -> set[str]:
    """The attributes of SGLang's objects that `source` reads, writes or calls."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)]
    return {node.attr for node in nodes if _name(node.value) in OBJECTS}


def _name(node: ast.expr) -> str | None:
    return node.id if isinstance(node, ast.Name) else getattr(node, "attr", None)


def missing(source: str) -> set[str]:
    return used(source) - {path.rpartition(".")[2] for path in LISTED} - OTHERS


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_attribute_that_is_used_is_listed(file: Path) -> None:
    assert not missing(file.read_text(encoding="utf-8"))


def test_an_attribute_that_is_not_listed_is_found() -> None:
    assert missing("def f(request): return request.rid, request._new") == {"_new"}
    assert missing("self._scheduler.tree_cache.drop(request.kv.row)") == {"drop", "row"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_import_is_listed(file: Path) -> None:
    nodes = [node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.ImportFrom)]
    for node in nodes:
        for alias in node.names if (node.module or "").startswith("sglang.") else ():
            name = f"{node.module}.{alias.name}"
            assert any(path == name or path.startswith(f"{name}.") for path in LISTED), name


def test_every_listed_name_is_used() -> None:
    text = "\n".join(file.read_text(encoding="utf-8") for file in FILES)
    words = {node.attr for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute)}
    words |= {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
    words |= {node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)}
    names = {path.rpartition(".")[2] for version in TESTED for path in used_names(version)} - {"__init__"}
    assert names <= words


def test_an_untested_version_has_the_names_of_the_one_before() -> None:
    assert used_names("0.5.20") == used_names(TESTED[0])
    assert used_names("0.6.0") == used_names(TESTED[-1])
    assert len(set(used_names("0.6.0"))) == len(used_names("0.6.0"))
