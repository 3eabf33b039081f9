"""API keys and their file: hashed at rest, compared with all entries, errors name the place and never the contents."""

import hmac
import json
from datetime import date

import pytest

from presift.core.errors import InvalidRequest, PresiftError
from presift.orchestrator.api.auth import api_keys
from presift.orchestrator.api.auth.api_keys import KeyEntry, digest_of, entry_of, new_key
from presift.orchestrator.api.auth.key_file import load_keys, read_keys
from presift.orchestrator.domain.caller import Caller, TenantLimits

KEY, OTHER = "psk_a-key", "psk_another"
ENTRIES = tuple(KeyEntry(name, name, digest_of(name)) for name in (KEY, OTHER, "psk_third"))
DIGEST = digest_of(KEY)


def test_keys_are_long_and_never_the_same():
    made = {new_key() for _ in range(50)}
    assert len(made) == 50 and all(len(key) >= 47 and key.startswith("psk_") for key in made)


@pytest.mark.parametrize("key", [KEY, OTHER, "psk_third"])
def test_a_key_has_its_entry(key):
    assert entry_of(key, ENTRIES).name == key


@pytest.mark.parametrize("key", ["", KEY[:-1], KEY + "x", DIGEST, KEY.upper(), "\udcff"])
def test_any_other_key_has_none(key):
    assert entry_of(key, ENTRIES) is None


def test_all_entries_are_compared_in_constant_time(monkeypatch):
    compared = []
    monkeypatch.setattr(
        api_keys.hmac, "compare_digest", lambda a, b: compared.append(b) or hmac_equal(a, b), raising=True
    )
    entry_of(KEY, ENTRIES)  # the first entry matches
    assert compared == [entry.sha256 for entry in ENTRIES]


hmac_equal = hmac.compare_digest

YAML = f"""
keys:
  - {{name: ci, tenant: acme, sha256: {DIGEST}}}
tenants:
  acme: {{tokens_per_minute: 1000, concurrency: 2}}
  other: {{concurrency: 1}}
"""


def test_yaml_and_json_are_the_same():
    from_yaml = read_keys(YAML.encode(), "keys.yaml")
    data = {
        "keys": [{"name": "ci", "tenant": "acme", "sha256": DIGEST}],
        "tenants": {"acme": {"tokens_per_minute": 1000, "concurrency": 2}, "other": {"concurrency": 1}},
    }
    assert from_yaml == read_keys(json.dumps(data).encode(), "keys.json")
    assert from_yaml.entries == (KeyEntry("ci", "acme", DIGEST),)
    assert from_yaml.limits == {"acme": TenantLimits(1000, 2), "other": TenantLimits(None, 1)}
    assert read_keys(b"", "empty").entries == ()


def test_a_key_is_an_administrators_only_if_the_file_says_so():
    text = f"keys:\n- {{name: a, tenant: b, sha256: {DIGEST}, admin: true}}\n- {{name: b, tenant: b, sha256: {DIGEST}}}"
    assert [each.is_admin for each in read_keys(text.encode(), "keys.yaml").entries] == [True, False]


def test_an_end_is_a_date_in_yaml_and_in_json():
    for written in ("2027-06-30", '"2027-06-30"'):
        text = f"keys:\n- {{name: a, tenant: b, sha256: {DIGEST}, expires: {written}}}"
        assert read_keys(text.encode(), "keys.yaml").entries[0].expires == date(2027, 6, 30)


SECRET = "psk_written-in-by-mistake"
BAD = {
    "a key where its digest belongs": (f"keys:\n- {{name: a, tenant: b, sha256: {SECRET}}}", 2),
    "no digest": ("keys:\n- {name: a, tenant: b}", 2),
    "no such field": (f"keys:\n- {{name: a, tenant: b, sha256: {DIGEST}, key: {SECRET}}}", 2),
    "a key as a field": (f"keys: []\n{SECRET}: 1", 2),
    "a tenant that cannot be": (f"keys:\n- {{name: a, tenant: 'b c', sha256: {DIGEST}}}", 2),
    "a name given twice": ("keys:\n" + f"- {{name: a, tenant: b, sha256: {DIGEST}}}\n" * 2, 1),
    "a limit of nothing": ("tenants:\n  acme: {concurrency: 0}", 2),
    "a limit in words": (f"tenants:\n  acme:\n    tokens_per_minute: {SECRET}", 3),
    "a limit that is true": ("tenants:\n  acme: {concurrency: true}", 2),
    "an administrator in words": (f"keys:\n- {{name: a, tenant: b, sha256: {DIGEST}, admin: {SECRET}}}", 2),
    "an administrator by a number": (f"keys:\n- {{name: a, tenant: b, sha256: {DIGEST}, admin: 1}}", 2),
    "an end in words": (f"keys:\n- {{name: a, tenant: b, sha256: {DIGEST}, expires: {SECRET}}}", 2),
    "an end by a number": (f"keys:\n- {{name: a, tenant: b, sha256: {DIGEST}, expires: 20270630}}", 2),
    "an end with a time": (f"keys:\n- {{name: a, tenant: b, sha256: {DIGEST}, expires: 2027-06-30T00:00:00Z}}", 2),
    "an impossible date": (f"keys:\n- {{name: a, tenant: b, sha256: {DIGEST}, expires: 2027-06-31}}", 2),
    "an impossible date as text": (f"keys:\n- {{name: a, tenant: b, sha256: {DIGEST}, expires: '2027-06-31'}}", 2),
    "not YAML": (f"keys: [\n{SECRET}: : :", 2),
    "not a mapping": (SECRET, 1),
    "twins": (f"keys: []\n{SECRET}: 1\n{SECRET}: 1", 3),
}


@pytest.mark.parametrize(("text", "line"), BAD.values(), ids=BAD)
def test_errors_name_the_place_and_never_the_contents(text, line):
    with pytest.raises(InvalidRequest) as refused:
        read_keys(text.encode(), "keys.yaml")
    assert f"keys.yaml:{line}: " in refused.value.message, refused.value.message
    said = f"{refused.value} {refused.value.details}"
    assert SECRET not in said and "written" not in said and DIGEST not in said


def test_a_file_that_is_not_text_is_rejected():
    with pytest.raises(InvalidRequest, match="UTF-8"):
        read_keys(b"\xff\xfe\x00", "keys.yaml")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(PresiftError, match="api_keys_file"):
        load_keys(tmp_path / "nowhere.yaml")


def test_no_digest_is_in_the_repr():
    assert DIGEST not in repr(read_keys(YAML.encode(), "keys.yaml"))


def test_every_tenant_has_its_own_salt():
    salts = {
        Caller(tenant, authenticated=True).salt(deployment)
        for tenant in ("a", "b", "", "a" * 64)
        for deployment in "xy"
    }
    assert len(salts) == 8 and all(len(salt) == 64 for salt in salts)
    # Without authentication the salt is the deployment's; a salt used as a tenant's name yields another salt.
    assert Caller("a").salt("x") == Caller().salt("x") == "x"
    stolen = Caller("a", authenticated=True).salt("x")
    assert Caller(stolen, authenticated=True).salt("x") != stolen


def test_unset_limits_take_the_defaults():
    assert TenantLimits(5).or_default(TenantLimits(9, 3)) == TenantLimits(5, 3)
    assert TenantLimits().or_default(TenantLimits()) == TenantLimits()
    for wrong in ({"tokens_per_minute": 0}, {"concurrency": -1}):
        with pytest.raises(InvalidRequest):
            TenantLimits(**wrong)
