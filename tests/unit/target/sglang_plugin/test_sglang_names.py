"""The table of SGLang's names: complete, and right for the installed version."""

from __future__ import annotations

import pkgutil
import re
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.version import Version

from presift.models.torchvision_ops import declare_missing
from presift.target.sglang_plugin import sglang_names
from presift.target.sglang_plugin.sglang_names import (
    TESTED,
    cached_prefix,
    engine_name,
    hooked_functions,
    installed,
    is_tested,
    plugin_functions,
    seeding_functions,
)

TESTS = Path(__file__).parents[3]
UPSTREAM = TESTS.parent / "ops" / "upstream.md"
OLDEST, NEWEST = TESTED[0], TESTED[-1]


def test_the_versions_are_in_order() -> None:
    assert list(TESTED) == sorted(TESTED, key=Version)


def test_every_hook_is_in_the_table_and_none_else() -> None:
    pytest.importorskip("torch")
    from presift.target.sglang import seeds
    from presift.target.sglang_plugin.hooks import Plugin

    for owner, functions in ((Plugin, plugin_functions), (seeds, seeding_functions)):
        hooks = {name for name in vars(owner) if name.startswith(("around_", "instead_of_"))}
        assert set(functions(OLDEST)) == hooks
        for version in TESTED:
            assert set(functions(version)) <= hooks


def test_the_hooks_of_the_plugin_and_of_the_seeds_are_all() -> None:
    for version in TESTED:
        plugin, seeding = plugin_functions(version), seeding_functions(version)
        assert not plugin.keys() & seeding.keys()
        assert hooked_functions(version) == plugin | seeding


def test_the_proposals_to_sglang_name_every_function() -> None:
    """The page is about the newest tested version."""
    page = UPSTREAM.read_text(encoding="utf-8")
    functions = [path.removeprefix("sglang.srt.").split(".") for path in hooked_functions(NEWEST).values()]
    # A class is in capitals; a function of a module is named alone.
    names = {".".join(names[-2:] if names[-2][0].isupper() else names[-1:]) for names in functions}
    rows = {name for line in page.splitlines() if line.startswith("| `") for name in re.findall(r"`([\w.]+)`", line)}
    assert names <= rows
    assert f"hooks {len(functions)} functions of SGLang {NEWEST}" in page
    assert f"{len(plugin_functions(NEWEST))} for KV dropping, {len(seeding_functions(NEWEST))} for seeded" in page


def test_the_proposals_say_how_many_hooks_stay() -> None:
    page = UPSTREAM.read_text(encoding="utf-8")
    fates = [line.split("|")[3].split()[0].strip(",") for line in page.splitlines() if line.startswith("| `")]
    gone, hooks = fates.count("goes"), len(plugin_functions(NEWEST))
    assert set(fates) == {"goes", "stays", "stay"}
    assert gone + fates.count("stays") == hooks
    assert f"make {gone} of the {hooks} hooks unnecessary, so that {hooks - gone} stay" in " ".join(page.split())


def test_the_proposals_name_tests_that_exist() -> None:
    tests = re.findall(r"(test_\w+\.py)::(test_\w+)", UPSTREAM.read_text(encoding="utf-8"))
    assert len(tests) >= 4
    for file, test in tests:
        assert f"def {test}(" in (TESTS / "e2e" / "spec_kv" / file).read_text(encoding="utf-8"), test


def test_a_row_changes_what_it_names() -> None:
    before, after = hooked_functions("0.5.21"), hooked_functions("0.5.22")
    assert before["around_insert_req"].endswith("UnifiedRadixCache.insert_req")
    assert after["around_insert_req"].endswith("UnifiedRadixCache.checkpoint")
    assert set(before) - set(after) == {"around_maybe_cache_unfinished_req"}
    assert {hook for hook in after if before[hook] != after[hook]} == {"around_insert_req"}


@pytest.mark.parametrize(
    ("version", "like"),
    [
        ("0.5.21+cpu", "0.5.21"),
        ("0.5.21.post1", "0.5.21"),
        ("0.5.22rc1", "0.5.22"),
        ("0.5.999", NEWEST),
        ("0.6.0", NEWEST),
        ("0.5.20", OLDEST),
        ("unknown", OLDEST),
    ],
)
def test_an_untested_version_has_the_names_of_the_one_before(version: str, like: str) -> None:
    assert hooked_functions(version) == hooked_functions(like)


@pytest.mark.parametrize("version", ["0.5.20", "0.5.21.post1", "0.5.22rc1", "0.5.999", "unknown", ""])
def test_only_the_releases_themselves_are_tested(version: str) -> None:
    assert not is_tested(version)
    assert engine_name(version) == f"sglang {version} (untested)"


@pytest.mark.parametrize("version", [*TESTED, f"{NEWEST}+cpu"])
def test_tested_versions(version: str) -> None:
    assert is_tested(version)
    assert engine_name(version) == f"sglang {version}"


def test_names_may_be_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A later version may hook again what one before did not need."""
    changes = {"1.0": {"a": "m.a", "b": "m.b"}, "1.1": {"a": None}, "1.2": {"a": "m.c"}}
    monkeypatch.setattr(sglang_names, "_CHANGES", changes)
    monkeypatch.setattr(sglang_names, "TESTED", tuple(changes))
    functions = [hooked_functions(version) for version in changes]
    both = {"a": "sglang.srt.m.a", "b": "sglang.srt.m.b"}
    assert functions == [both, {"b": "sglang.srt.m.b"}, both | {"a": "sglang.srt.m.c"}]


@pytest.mark.skipif(find_spec("sglang") is None, reason="needs SGLang")
def test_the_installed_sglang_is_tested_and_has_the_names() -> None:
    declare_missing()
    assert is_tested(installed())
    for path in hooked_functions(installed()).values():
        assert callable(pkgutil.resolve_name(path)), path


def test_both_kinds_of_cached_prefix() -> None:
    assert cached_prefix(SimpleNamespace(prefix_indices=[7, 8, 9])) == 3
    assert cached_prefix(SimpleNamespace(prefix_len=4)) == 4
