"""The canary of SGLang's versions: what changed in a fake SGLang is told by name, and the exit status tells too."""

from __future__ import annotations

import json
import zipfile
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent

import canary
import pytest
from packaging.version import Version

from presift.target.sglang_plugin.sglang_names import TESTED, hooked_functions, installed
from presift.target.sglang_plugin.used_names import used_names

HOOKED, USED = list(hooked_functions("9.9").values()), used_names("9.9")
PATHS = HOOKED + USED
RENAMED = "sglang.srt.managers.schedule_policy.PrefillAdder.add_one_req"
SEEDING = "sglang.srt.layers.sampler.multinomial_with_seed"
USED_CHANGED = "sglang.srt.mem_cache.base_prefix_cache.BasePrefixCache.free_kv_row"
USED_GONE = "sglang.srt.layers.logits_processor.LogitsProcessor._get_logits"
CHANGED = "sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache.reset"
BODY = "if a:\n            return a + 1"


def fake_sglang(folder, changes=()):
    """A package with all names that presift hooks or uses, as functions. `changes`: (text, replacement) by path."""
    classes = {}
    for path in PATHS:
        module, kind, function = path.rsplit(".", 2)
        text = f"    def {function}(self, a, *, b: int = 1):\n        {BODY}\n"
        before, after = dict(changes).get(path, ("", ""))
        assert before in text
        text = text.replace(before, after)
        if kind.islower():  # a function of the module itself
            module, kind, text = f"{module}.{kind}", f"Before_{function}", f"    pass\n\n{dedent(text)}"
        classes.setdefault(module, {}).setdefault(kind, []).append(text)
    for module, kinds in classes.items():
        file = folder.joinpath(*module.split(".")).with_suffix(".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(f"class {kind}:\n{''.join(texts)}" for kind, texts in kinds.items()))
    # Without it the installed package would come first.
    (folder / "sglang" / "__init__.py").touch()
    return folder


def wheel(folder, version):
    """The packages of `folder` as a wheel."""
    path = folder.parent / f"sglang-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as files:
        for file in folder.rglob("*.py"):
            files.write(file, str(file.relative_to(folder)))
        files.writestr(
            f"sglang-{version}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: sglang\nVersion: {version}\n"
        )
    return path


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty PRESIFT_HOME, and a manifest of the fake SGLang 9.8 instead of the repository's."""
    monkeypatch.setenv("PRESIFT_HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "sglang").mkdir(parents=True)
    monkeypatch.setattr(canary, "MANIFEST", tmp_path / "functions.json")
    known = canary.sections(fake_sglang(tmp_path / "known"), "9.8")
    assert {section: list(names) for section, names in known.items()} == {"hooked": HOOKED, "used": USED}
    canary.MANIFEST.write_text(json.dumps({"9.8": known}))
    return tmp_path


@pytest.fixture
def outcome(monkeypatch):
    """No tests are run; whether they pass."""
    outcome = [True]
    monkeypatch.setattr(canary, "passes", lambda folder, tests: outcome[0])
    return outcome


PLANTED = {
    RENAMED: ("def add_one_req", "def add_request"),
    SEEDING: ("def multinomial_with_seed", "def seeded_multinomial"),
    CHANGED: ("a + 1", "a + 2"),
    USED_CHANGED: ("a + 1", "a + 2"),
    USED_GONE: ("def _get_logits", "def _logits"),
}


def test_a_renamed_function_and_a_changed_body_are_told_by_name(home, outcome, capsys):
    path = wheel(fake_sglang(home / "new", PLANTED), "9.9")
    assert canary.main([str(path)]) == canary.GONE_OR_CHANGED
    told = capsys.readouterr().out.splitlines()
    assert told == [
        f"sglang 9.9: hooked, gone: {SEEDING}",
        f"sglang 9.9: hooked, gone: {RENAMED}",
        f"sglang 9.9: hooked, changed: {CHANGED}",
        f"sglang 9.9: used, gone: {USED_GONE}",
        f"sglang 9.9: used, changed: {USED_CHANGED}",
        f"== sglang 9.9: 3 of {len(HOOKED)} hooked, 2 of {len(USED)} used names differ from 9.8's",
    ]


@pytest.mark.parametrize("planted", [{}, PLANTED, {USED_CHANGED: PLANTED[USED_CHANGED]}])
@pytest.mark.parametrize("passed", [True, False])
def test_the_exit_status_is_the_sum(home, outcome, planted, passed):
    outcome[0] = passed
    path = wheel(fake_sglang(home / "new", planted), "9.9")
    assert canary.main([str(path)]) == canary.GONE_OR_CHANGED * bool(planted) + canary.TESTS_FAILED * (not passed)


def test_what_was_read_is_accepted(home, outcome):
    path = wheel(fake_sglang(home / "new", {CHANGED: PLANTED[CHANGED]}), "9.9")
    assert canary.main([str(path), "--accept"]) == 0
    assert list(json.loads(canary.MANIFEST.read_text())) == ["9.8", "9.9"]
    assert canary.main([str(path)]) == 0


@pytest.mark.parametrize(
    ("before", "after", "is_same"),
    [
        (BODY, f'"""What it does."""\n        {BODY}', True),
        (BODY, f"# Why.\n        {BODY}", True),
        ("a + 1", "(a +\n                1)", True),
        ("a + 1", "a - 1", False),
        ("b: int = 1", "b: int = 2", False),
        ("self, a", "self, c", False),
        ("    def", "    @staticmethod\n    def", False),
        ("return a + 1", "return None", False),
        ("return a + 1", "return", False),
    ],
)
def test_only_code_counts(home, before, after, is_same):
    new = canary.sections(fake_sglang(home / "new", {CHANGED: (before, after)}), "9.9")
    assert (new == json.loads(canary.MANIFEST.read_text())["9.8"]) is is_same


REQUEST = """
class Req:
    state: int = 0

    def __init__(self, a):
        self.row, self.other = a, 1
        self.other_state = a

    def stop(self):
        if self.row:
            self.row = None

    @property
    def size(self):
        return 1

    @size.setter
    def size(self, value):
        self.other = value
"""


@pytest.mark.parametrize(
    ("before", "after", "changed"),
    [
        ("state: int = 0", "state: int = 1", ["state"]),
        ("self.row, self.other = a, 1", "self.row, self.other = a, 2", ["row", "other"]),
        ("self.row = None", "self.row = 0", ["row"]),
        ("self.row = None", "self.row[0] = None", ["row"]),
        ("if self.row:", "if not self.row:", []),
        ("self.other_state = a", "self.other_state = 1", []),
        ("return 1", "return 2", ["size"]),
        ("self.other = value", "self.other = 0", ["other", "size"]),
    ],
)
def test_attributes_are_what_assigns_them(tmp_path, before, after, changed):
    paths = [f"package.module.Req.{name}" for name in ("state", "row", "other", "size")]
    file = tmp_path / "package" / "module.py"
    file.parent.mkdir()
    file.write_text(REQUEST)
    known = canary.digests(tmp_path, [*paths, "package.module.Req.missing"])
    assert list(known) == paths
    assert REQUEST.count(before) == 1
    file.write_text(REQUEST.replace(before, after))
    new = canary.digests(tmp_path, paths)
    assert {path.rpartition(".")[2] for path in paths if new[path] != known[path]} == set(changed)


@pytest.mark.parametrize(("version", "base"), [("1.1", "1.1"), ("1.2", "1.1"), ("1.10", "1.9"), ("0.9", "1.1")])
def test_a_version_is_compared_with_the_one_before(version, base):
    assert canary.base_of(version, ["1.9", "1.1"]) == base


def test_a_function_without_a_digest_is_new():
    assert canary.differences(["a", "b"], {"a": "1", "b": "2"}, {"a": "1"}) == ["new: b"]


def test_a_newer_wheel_is_unpacked_again(home):
    cache = home / "home" / "sglang"
    old = canary.unpack(wheel(fake_sglang(home / "old"), "9.9"), cache)
    (old / "mark").touch()
    assert (canary.unpack(home / "sglang-9.9-py3-none-any.whl", cache) / "mark").exists()
    path = wheel(fake_sglang(home / "new", PLANTED), "9.9")
    path.touch()
    assert list(canary.digests(canary.unpack(path, cache), PATHS)) == [
        each for each in PATHS if each not in (RENAMED, SEEDING, USED_GONE)
    ]


def test_no_wheel_has_a_status_of_its_own(home, capsys):
    assert canary.main([str(home / "sglang-9.9-py3-none-any.whl")]) == canary.NO_WHEEL
    assert "no wheel of SGLang" in capsys.readouterr().err


@pytest.mark.processes
def test_the_tests_run_on_the_wheel(home):
    """In front of the installed version."""
    test = home / "test_overlay.py"
    test.write_text(
        "from importlib.metadata import version\nfrom pathlib import Path\n\n"
        "def test_overlay():\n    import sglang.srt.managers.scheduler as module\n\n"
        f"    assert Path(module.__file__).is_relative_to({str(home / 'home')!r})\n"
        "    assert version('sglang') == '9.9'\n"
    )
    path = wheel(fake_sglang(home / "new"), "9.9")
    assert canary.main([str(path), str(test)]) == 0
    test.write_text("def test_fails():\n    assert False\n")
    assert canary.main([str(path), str(test)]) == canary.TESTS_FAILED


def test_the_manifest_has_every_name_of_every_tested_version():
    manifest = json.loads(canary.MANIFEST.read_text())
    assert tuple(manifest) == TESTED
    for version in TESTED:
        hooked = list(hooked_functions(version).values())
        assert {section: list(names) for section, names in manifest[version].items()} == {
            "hooked": hooked,
            "used": used_names(version),
        }


@pytest.mark.skipif(find_spec("sglang") is None, reason="needs SGLang")
def test_the_installed_version_is_that_of_the_manifest():
    """Whoever patches the installed SGLang, or changes the lock, reads here which names differ."""
    folder, manifest = Path(find_spec("sglang").origin).parents[1], json.loads(canary.MANIFEST.read_text())
    version = Version(installed()).public
    found = canary.sections(folder, version)
    assert not [
        line for lines in canary.section_differences(version, found, manifest[version]).values() for line in lines
    ]
