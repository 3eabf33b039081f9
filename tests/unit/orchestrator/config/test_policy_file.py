"""The policy file: its keys, and the line of each fault."""

import hashlib
import logging
import tracemalloc
from pathlib import Path

import pytest

from presift.core.errors import InvalidRequest
from presift.core.plan import Route
from presift.core.policies import KvSelection
from presift.orchestrator.config.policy_file import load_policy_file
from presift.orchestrator.config.policy_schema import KEYS, BudgetMapping
from presift.orchestrator.config.policy_settings import policy_defaults
from presift.orchestrator.config.reload import PolicySource, policy_source
from presift.orchestrator.config.settings import OrchestratorSettings
from presift.orchestrator.domain.request import AutoCapacity, Budget, KvLookahead
from presift.orchestrator.routing.choice import Defaults

EXAMPLE = Path(__file__).parents[4] / "ops" / "policy.example.yaml"


@pytest.fixture
def settings(monkeypatch):
    monkeypatch.setattr("sys.argv", ["orchestrator", "--kv-window", "16"])
    return OrchestratorSettings()


@pytest.fixture
def load(settings, tmp_path):
    """text -> the policy file"""

    def load(text):
        path = tmp_path / "policy.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_policy_file(path, settings)

    return load


def test_the_example(settings):
    file = load_policy_file(EXAMPLE, settings)
    assert file.digest == hashlib.sha256(EXAMPLE.read_bytes()).hexdigest() and file.loaded_at.tzinfo is not None
    middle = file.table.lookup(8193, "other").defaults
    assert (middle.spec_pc.capacity, middle.spec_kv.capacity, middle.cascade_capacity) == (2048, 1024, 4096)
    long = file.table.lookup(65_537, "qwen2.5-coder-1.5b-instruct", "legal")
    assert long.defaults.route_order == (Route.FULL, Route.SPEC_KV, Route.SPEC_PC)
    assert (long.defaults.spec_pc.capacity, long.defaults.compress_above_tokens) == (16_384, 16_384)
    assert long.budget == Budget(max_kv_tokens=20_000, min_coverage=0.8, strict=True)
    assert all(name in EXAMPLE.read_text() for name in (*KEYS, *BudgetMapping.model_fields))


def test_every_key_takes_effect_and_changes_nothing_else(load, settings):
    text = """
compress_above_tokens: 0
capacity: 99
lookahead_tokens: 3
kv_capacity: 98
kv_selection: draft_mask
kv_lookahead_tokens: 0
kv_lookahead: target
kv_first_full_tokens: 94
kv_renew_every: 93
kv_renew_window: 92
cascade_capacity: 97
auto_coverage: 0.5
route_order: spec_pc, full
budget: {max_prompt_tokens: 96, max_kv_tokens: 95, max_ttft_ms: 94, min_coverage: 1, strict: true}
"""
    terms = load(text).table.lookup(1, "")
    found, plain = terms.defaults, policy_defaults(settings)
    assert found.compress_above_tokens == 0 and found.cascade_capacity == 97
    assert (found.spec_pc.capacity, found.spec_pc.lookahead_tokens, found.spec_pc.pool) == (99, 3, plain.spec_pc.pool)
    assert (found.spec_kv.capacity, found.spec_kv.selection) == (98, KvSelection.DRAFT_MASK)
    assert (found.spec_kv.lookahead_tokens, found.spec_kv.window) == (0, 16)
    assert (found.lookahead, found.first_full_tokens) == (KvLookahead.TARGET, 94)
    assert (found.renew_every, found.renew_window) == (93, 92)
    assert found.route_order == (Route.SPEC_PC, Route.FULL) and found.auto_capacity == AutoCapacity(0.5)
    assert terms.budget == Budget(96, 95, True, None, 94, 1.0)


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "{}", "\ufeffcapacity: 1024\n"])
def test_a_file_that_changes_nothing(load, settings, text):
    assert load(text).table.lookup(5, "m", "t").defaults == policy_defaults(settings)


def test_levels_may_be_merged_by_alias(load):
    terms = load("tenants:\n  a: &a {capacity: 77, kv_capacity: 66}\n  b:\n    <<: *a\n    capacity: 78\n").table
    defaults = terms.lookup(1, "", "b").defaults
    assert (defaults.spec_pc.capacity, defaults.spec_kv.capacity) == (78, 66)


BANDS = "bands:\n  - up_to_tokens: 9\n    capacity: 50\n"
FAULTS = {
    "unknown key": ("capacity: 99\nwarp: 1\n", 2, "warp: unknown key (it is 1)"),
    "unknown key of a budget": ("budget:\n  strict: true\n  warp: 1\n", 3, "budget.warp: unknown key"),
    "a setting that is not a key": ("\n\nkv_window: 8\n", 3, "kv_window: unknown key"),
    "type": ("\ncapacity: many\n", 2, "capacity: Input should be a valid integer (it is 'many')"),
    "quoted number": ("capacity: '99'\n", 1, "capacity: Input should be a valid integer"),
    "boolean for a number": ("kv_capacity: yes\n", 1, "kv_capacity: Input should be a valid integer (it is True)"),
    "null": ("budget:\n\n  max_kv_tokens:\n", 3, "budget.max_kv_tokens: Input should be a valid integer (it is None)"),
    "text for strict": ("budget: {strict: 'no'}\n", 1, "budget.strict: Input should be a valid boolean"),
    "range of a setting": ("kv_lookahead_tokens: 257\n", 1, "Input should be less than or equal to 256 (it is 257)"),
    "below the window": ("\ncapacity: 31\n", 2, "capacity: must be >= window (32) (it is 31)"),
    "not above the KV window": ("kv_capacity: 16\n", 1, "kv_capacity: must be > window (16) (it is 16)"),
    "route": ("route_order: full,warp\n", 1, "route_order: must be of full, spec_pc, spec_kv, spec_kv_pc"),
    "order without full": ("route_order: spec_pc\n", 1, "route_order: must be each route once, full among them"),
    "selection": ("kv_selection: mine\n", 1, "kv_selection: Input should be 'target_lookahead' or 'draft_mask'"),
    "lookahead": ("kv_lookahead: mine\n", 1, "kv_lookahead: Input should be 'draft', 'target' or 'auto'"),
    "no first tokens": ("kv_first_full_tokens: 0\n", 1, "Input should be greater than or equal to 1 (it is 0)"),
    "renewal": ("kv_renew_every: -1\n", 1, "Input should be greater than or equal to 0 (it is -1)"),
    "budget of nothing": ("budget: {max_ttft_ms: 0}\n", 1, "budget.max_ttft_ms: must be >= 1 (it is 0)"),
    "budget below the window": ("budget: {max_prompt_tokens: 31}\n", 1, "budget.max_prompt_tokens: must be >= 32"),
    "KV budget below the windows": ("budget: {max_kv_tokens: 31}\n", 1, "budget.max_kv_tokens: must be >= 32"),
    "coverage": ("budget:\n  min_coverage: .nan\n", 2, "budget.min_coverage: must be 0 < coverage <= 1 (it is nan)"),
    "in a band": (f"{BANDS}  - capacity: 0\n", 4, "bands[1].capacity: Input should be greater than or equal to 1"),
    "in a band, beside the settings": (f"{BANDS}  -\n    capacity: 5\n", 5, "bands[1].capacity: must be >= window"),
    "bands out of order": (
        f"{BANDS}  - kv_capacity: 90\n    up_to_tokens: 9\n  - {{}}\n",
        5,
        "bands[1].up_to_tokens: must be > 9 (the previous band) (it is 9)",
    ),
    "no open band": (BANDS, 2, "bands[0].up_to_tokens: must be unset in the last band (it is 9)"),
    "two open bands": (
        "bands:\n  - capacity: 99\n  - {}\n",
        2,
        "bands[0].up_to_tokens: must be set in every band but the last (it is None)",
    ),
    "a level in a band": (f"{BANDS}    bands: []\n", 4, "bands[0].bands: unknown key"),
    "in a tenant": ("tenants:\n  b.c:\n    capacity: 1\n", 3, "tenants.b.c.capacity: must be >= window (32)"),
    "in a tenant's band": (
        "tenants:\n  a:\n    bands:\n      - budget:\n          max_kv_tokens: 1\n",
        5,
        "tenants.a.bands[0].budget.max_kv_tokens: must be >= 32 (window, kv_window + 2) (it is 1)",
    ),
    "in a model": ("models:\n  org/m: {}\n  n:\n    warp: 2\n", 4, "models.n.warp: unknown key"),
    "a tenant's name": ("tenants:\n  ok: {}\n  'a b': {}\n", 3, "tenants.a b: String should match pattern"),
    "a name that is not text": ("tenants:\n  yes: {}\n", 2, "Input should be a valid string (it is True)"),
    "not a mapping": ("- 1\n", 1, "the file: must be a mapping (it is [1])"),
    "the first of two": (f"{BANDS}kv_capacity: 0\ncapacity: 0\n", 4, "kv_capacity: Input should be greater"),
    "duplicate key": ("capacity: 99\nbudget: {}\ncapacity: 98\n", 3, "YAML: duplicate key capacity"),
    "duplicate key in a tenant's level": ("tenants:\n  a: {}\n  a: {}\n", 3, "YAML: duplicate key a"),
    "not YAML": ("capacity: 99\nbudget: [\n", 3, "YAML: expected the node content"),
    "a tab": ("budget:\n\tstrict: true\n", 2, "YAML: found character '\\t' that cannot start any token"),
    "two documents": ("capacity: 99\n---\ncapacity: 98\n", 2, "YAML: but found another document"),
    "an object": ("capacity: 99\nkv_capacity: !!python/name:os.system x\n", 2, "YAML: could not determine a construct"),
    "a number that is too long": ("capacity: 99\nwindow: 1" + ":59" * 30 + "\n", 2, "YAML: a number of more than 64"),
    "a fraction that is too long": ("capacity: 1" + ":59" * 200 + ".5\n", 1, "YAML: a number of more than 64"),
    "an invalid date": ("capacity: 99\nkv_capacity: 2020-99-99\n", 2, "YAML: month must be in 1..12"),
    "a key that is a list": ("capacity: 99\n? [1]\n: 2\n", 2, "YAML: found unhashable key"),
    "a control character": ("capacity: 99\n\x07\n", 2, "YAML: unreadable character"),
    "not UTF-8": (b"# fine\n# \xff\n", 2, "encoding: not UTF-8"),
    "too deep": ("[" * 5000, 1, "YAML: nested too deeply"),
    "override of a merged key": (
        "tenants:\n  a: &a {capacity: 77}\n  b:\n    <<: *a\n    capacity: 1\n",
        5,
        "tenants.b.capacity",
    ),
    "alias of itself": ("capacity: 99\nbudget: &b\n  warp: *b\n", 3, "budget.warp: unknown key"),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_every_fault_has_its_line(load, fault):
    text, line, message = fault
    with pytest.raises(InvalidRequest) as refused:
        load(text)
    assert refused.value.message.startswith(f"policy.yaml:{line}: "), refused.value.message
    assert message in refused.value.message
    assert refused.value.field == "policy_file" and len(refused.value.message) < 250


LAUGHS = "".join(f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9)}]\n" for i in range(1, 20))
MERGES = "".join(f"x{i}: &x{i} {{<<: [{', '.join([f'*x{i - 1}'] * 9)}]}}\n" for i in range(1, 20))
# Each tenant repeats all bands by an alias: the file grows by the sum, the rules by the product.
BAND_LINES = "".join(f"    - up_to_tokens: {i}\n" for i in range(1, 2000))
PRODUCT = f"tenants:\n  a: &a\n    bands:\n{BAND_LINES}    - {{}}\n" + "".join(f"  t{i}: *a\n" for i in range(2000))
BOMBS = {
    "lists": f"x0: &x0 [1]\n{LAUGHS}",
    "merges": f"x0: &x0 {{capacity: 99}}\n{MERGES}",
    "tenants": PRODUCT,
}


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS)
def test_an_alias_bomb_is_refused_within_bounded_memory(load, text):
    tracemalloc.start()
    with pytest.raises(InvalidRequest, match="expands to more than 100000 values"):
        load(text)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 64 << 20


def test_a_file_that_is_too_large(load):
    with pytest.raises(InvalidRequest, match="more than 1048576 bytes"):
        load("# " + "x" * (1 << 20))


def test_a_missing_file(settings, tmp_path):
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(InvalidRequest, match=str(path)):
            load_policy_file(path, settings)


async def test_settings_without_a_file(settings):
    terms = policy_source(settings)
    assert terms.file is None
    assert terms.table.lookup(9, "m", "t").defaults == policy_defaults(settings)
    await terms.reload()
    assert terms.file is None


async def test_an_invalid_file_is_logged_and_the_previous_one_stays(load, caplog):
    texts = ["capacity: 60\n", "capacity: 1\n", RuntimeError("a bug"), "capacity: 70\n"]

    def read():
        text = texts.pop(0)
        if isinstance(text, Exception):
            raise text
        return load(text)

    terms = PolicySource(load("").table, read)
    with caplog.at_level(logging.INFO):
        seen = [_capacity(terms.table.lookup(1, "").defaults)]
        for _ in range(3):
            await terms.reload()
            seen.append(_capacity(terms.table.lookup(1, "").defaults))
    assert seen == [60, 60, 60, 70]
    levels = [record.levelname for record in caplog.records]
    assert levels == ["ERROR", "ERROR", "INFO"] and "policy.yaml:1: capacity: must be" in caplog.records[0].message


def _capacity(defaults: Defaults) -> int:
    return defaults.spec_pc.capacity
