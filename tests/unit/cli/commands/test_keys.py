"""`presift keys new`: the orchestrator accepts the printed key and entry."""

import json
from datetime import date

import pytest
from typer.testing import CliRunner

from presift.cli.app import app
from presift.orchestrator.api.auth.api_keys import entry_of
from presift.orchestrator.api.auth.key_file import read_keys


def run(*arguments):
    return CliRunner().invoke(app, ["keys", "new", *arguments])


def test_the_entry_accepts_the_key():
    result = run("--tenant", "acme")
    assert result.exit_code == 0, result.output
    key = next(line for line in result.stdout.splitlines() if line.startswith("psk_"))
    entry = result.stdout.splitlines()[-1]
    found = entry_of(key, read_keys(f"keys:\n{entry}\n".encode(), "keys.yaml").entries)
    assert found is not None and found.tenant == "acme" and found.name.startswith("acme-")
    assert key not in entry


def test_json_is_one_object():
    printed = json.loads(run("--tenant", "acme", "--name", "ci", "--json").stdout)
    entries = read_keys(json.dumps({"keys": [printed["entry"]]}).encode(), "keys.json").entries
    assert entry_of(printed["key"], entries).name == "ci"


def test_the_longest_tenant_gets_a_name():
    assert json.loads(run("--tenant", "a" * 64, "--json").stdout)["entry"]["name"]


def test_an_admin_key_is_one_for_the_orchestrator_too():
    for flags, is_admin in (((), False), (("--admin",), True)):
        printed = json.loads(run("--tenant", "acme", *flags, "--json").stdout)
        (entry,) = read_keys(json.dumps({"keys": [printed["entry"]]}).encode(), "keys.json").entries
        assert entry.is_admin is is_admin


def test_a_key_may_have_an_end():
    printed = json.loads(run("--tenant", "acme", "--expires", "2027-06-30", "--json").stdout)
    (entry,) = read_keys(json.dumps({"keys": [printed["entry"]]}).encode(), "keys.json").entries
    assert entry.expires == date(2027, 6, 30)
    assert run("--tenant", "acme", "--expires", "2027-06-31").exit_code != 0


@pytest.mark.parametrize("wrong", [("--tenant", "a/b"), ("--tenant", ""), ("--tenant", "a", "--name", "b c")])
def test_a_bad_name_is_an_error(wrong):
    result = run(*wrong)
    assert result.exit_code == 1 and result.stderr.startswith("error: --") and "psk_" not in result.output
