"""The one-shot services of the compose stack: secrets, certificates, models."""

import io
import json
import stat
import subprocess
import sys
import tarfile
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from presift.orchestrator.api.auth.api_keys import entry_of
from presift.orchestrator.api.auth.key_file import load_keys
from presift.rpc.security.service_token import tokens_from_file
from presift_demo_models.fetch import MANIFEST

from .sources import BASE, OPS, TLS, config
from .test_images import script

keys = script(OPS / "compose" / "keys.py")
certificates = script(OPS / "compose" / "certificates.py")
models = script(OPS / "compose" / "models.py")


@pytest.fixture
def folder(tmp_path):
    for name in ("inner", "door", "caller"):
        (tmp_path / name).mkdir()
    return tmp_path


def run(folder, *arguments):
    return keys.main([str(folder), *arguments])


def contents(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_secrets_are_created_once(folder, capsys):
    assert run(folder, "make") == 0
    made = contents(folder)
    assert set(made) == {keys.TOKEN, keys.SALT, keys.KEYS, keys.CALLER}
    assert run(folder, "make") == 0 and contents(folder) == made
    told = capsys.readouterr()
    assert not any(secret.strip() in told.out + told.err for name, secret in made.items() if name != keys.KEYS)


def test_services_accept_the_secrets(folder, capsys):
    run(folder, "make")
    capsys.readouterr()
    run(folder, "show")
    key = capsys.readouterr().out.strip()
    assert entry_of(key, load_keys(folder / keys.KEYS).entries).tenant == "first"
    assert key not in (folder / keys.KEYS).read_text()
    assert len(tokens_from_file("service_token_file", folder / keys.TOKEN).current()[0]) == 64
    for path in folder.rglob("*"):
        if path.is_file():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_key_is_added_to_the_existing_ones(folder, capsys):
    run(folder, "make")
    (folder / keys.KEYS).open("a").close()
    capsys.readouterr()
    assert run(folder, "add", "acme") == 0
    key = capsys.readouterr().out.strip()
    known = load_keys(folder / keys.KEYS)
    assert [each.tenant for each in known.entries] == ["first", "acme"] and entry_of(
        key, known.entries
    ).tenant == "acme"


def test_an_admin_key_is_added_and_listed(folder, capsys):
    run(folder, "make")
    assert run(folder, "add", "ops", "--admin") == 0
    assert [each.is_admin for each in load_keys(folder / keys.KEYS).entries] == [False, True]
    capsys.readouterr()
    run(folder, "list")
    assert ": tenant ops, admin\n" in capsys.readouterr().out


def test_a_key_with_an_end_is_added_and_listed(folder, capsys):
    run(folder, "make")
    assert run(folder, "add", "acme", "--expires", "2027-06-30") == 0
    path = folder / keys.KEYS
    path.write_text(path.read_text().replace('"2027-06-30"', "2027-06-30"))  # as written by hand
    capsys.readouterr()
    run(folder, "list")
    assert ": tenant acme, until 2027-06-30\n" in capsys.readouterr().out
    assert run(folder, "add", "other") == 0
    assert [str(each.expires) for each in load_keys(path).entries] == ["None", "2027-06-30", "None"]


def test_limits_of_tenants_stay_when_a_key_is_added(folder):
    run(folder, "make")
    text = (folder / keys.KEYS).read_text().replace("tenants: {}", "tenants: {acme: {concurrency: 8}}")
    (folder / keys.KEYS).write_text(text)
    run(folder, "add", "acme")
    assert load_keys(folder / keys.KEYS).limits["acme"].concurrency == 8


def test_an_invalid_tenant_name_changes_nothing(folder, capsys):
    run(folder, "make")
    before = contents(folder)
    assert run(folder, "add", "a b") == 1 and contents(folder) == before
    assert "must be a name" in capsys.readouterr().err


def test_a_revoked_key_is_not_accepted(folder, capsys):
    run(folder, "make")
    run(folder, "limit", "acme", "--concurrency", "8")
    capsys.readouterr()
    run(folder, "add", "acme")
    key = capsys.readouterr().out.strip()
    name = entry_of(key, load_keys(folder / keys.KEYS).entries).name
    assert run(folder, "list") == 0
    told = capsys.readouterr().out
    assert f"key {name}: tenant acme\n" in told and "tenant acme: concurrency 8" in told and key not in told
    assert run(folder, "revoke", name) == 0
    known = load_keys(folder / keys.KEYS)
    assert entry_of(key, known.entries) is None and [each.tenant for each in known.entries] == ["first"]
    assert known.limits["acme"].concurrency == 8
    assert run(folder, "show") == 0


def test_the_first_key_is_not_shown_once_it_is_revoked(folder, capsys):
    """Even if it was the last one: then no key is accepted, and `make` creates no other."""
    run(folder, "make")
    (first,) = load_keys(folder / keys.KEYS).entries
    assert run(folder, "revoke", first.name) == 0
    assert load_keys(folder / keys.KEYS).entries == () and not (folder / keys.CALLER).exists()
    assert run(folder, "make") == 0 and load_keys(folder / keys.KEYS).entries == ()
    assert run(folder, "show") == 1 and run(folder, "add", "acme") == 0
    assert len(load_keys(folder / keys.KEYS).entries) == 1


def test_an_unknown_key_cannot_be_revoked(folder, capsys):
    run(folder, "make")
    before = contents(folder)
    assert run(folder, "revoke", "absent-1234") == 1 and contents(folder) == before
    assert "absent-1234" in capsys.readouterr().err


def test_limits_of_a_tenant_are_set_and_removed(folder):
    run(folder, "make")
    assert run(folder, "limit", "acme", "--tokens-per-minute", "200000", "--concurrency", "8") == 0
    assert run(folder, "limit", "other", "--concurrency", "1") == 0
    limits = load_keys(folder / keys.KEYS).limits
    assert (limits["acme"].tokens_per_minute, limits["acme"].concurrency) == (200_000, 8)
    assert run(folder, "limit", "acme", "--concurrency", "2") == 0
    limits = load_keys(folder / keys.KEYS).limits
    assert (limits["acme"].tokens_per_minute, limits["acme"].concurrency) == (None, 2)
    assert run(folder, "limit", "acme") == 0
    assert set(load_keys(folder / keys.KEYS).limits) == {"other"}


@pytest.mark.parametrize("arguments", [("a b", "--concurrency", "1"), ("acme", "--tokens-per-minute", "0")])
def test_an_invalid_limit_changes_nothing(folder, arguments):
    run(folder, "make")
    before = contents(folder)
    assert run(folder, "limit", *arguments) == 1 and contents(folder) == before


def test_a_half_made_folder_is_completed(folder):
    """After a kill between key and entry, a new key replaces the one without an entry."""
    run(folder, "make")
    (folder / keys.KEYS).unlink()
    (folder / "door" / ".api-keys.yaml.partial").write_text("half")
    assert run(folder, "make") == 0
    key = (folder / keys.CALLER).read_text().strip()
    assert entry_of(key, load_keys(folder / keys.KEYS).entries)


def test_an_invalid_file_of_keys_is_reported(folder, capsys):
    run(folder, "make")
    (folder / keys.KEYS).write_text("keys: [{name: a}]")
    assert run(folder, "make") == 1 and "api-keys.yaml:1" in capsys.readouterr().err


def cert_of(folder, role):
    return x509.load_pem_x509_certificate((folder / role / "cert.pem").read_bytes())


def test_certificates_have_their_roles_names(tmp_path):
    certificates.make(tmp_path)
    ca = x509.load_pem_x509_certificate((tmp_path / "authority" / "ca.pem").read_bytes())
    for role, names in certificates.ROLES.items():
        cert = cert_of(tmp_path, role)
        cert.verify_directly_issued_by(ca)
        alternatives = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert [str(each.value) for each in alternatives] == names
        assert (tmp_path / role / "ca.pem").read_bytes() == (tmp_path / "authority" / "ca.pem").read_bytes()
        assert stat.S_IMODE((tmp_path / role / "key.pem").stat().st_mode) == 0o600
    subprocess.run(
        ["openssl", "verify", "-x509_strict", "-CAfile", tmp_path / "draft/ca.pem", tmp_path / "draft/cert.pem"],
        check=True,
        capture_output=True,
    )


def test_certificates_are_renewed_before_they_expire(tmp_path, monkeypatch):
    certificates.make(tmp_path)
    first = cert_of(tmp_path, "draft").serial_number
    certificates.make(tmp_path)
    assert cert_of(tmp_path, "draft").serial_number == first
    monkeypatch.setattr(certificates, "_DAYS", 20)
    (tmp_path / "draft" / "cert.pem").unlink()
    certificates.make(tmp_path)
    short = cert_of(tmp_path, "draft")
    assert short.not_valid_after_utc < datetime.now(UTC) + timedelta(days=21)
    monkeypatch.undo()
    certificates.make(tmp_path)
    assert cert_of(tmp_path, "draft").serial_number != short.serial_number


def test_certificates_of_another_authority_are_replaced(tmp_path):
    certificates.make(tmp_path)
    first = cert_of(tmp_path, "target").serial_number
    for file in (tmp_path / "authority").iterdir():
        file.unlink()
    certificates.make(tmp_path)
    assert cert_of(tmp_path, "target").serial_number != first


def test_export_contains_the_callers_files(tmp_path):
    certificates.make(tmp_path)
    command = [sys.executable, OPS / "compose/certificates.py", tmp_path, "export"]
    done = subprocess.run(command, capture_output=True, check=True)
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        assert archive.getnames() == ["ca.pem", "cert.pem", "key.pem"]


def test_every_role_of_the_tls_layer_mounts_its_certificate():
    services = config(files=(BASE, TLS))["services"]
    mounted = {each["target"].rpartition("/")[2] for each in services["certificates"]["volumes"]}
    assert mounted == {*certificates.ROLES, "authority"}
    for role in set(certificates.ROLES) - {"caller"}:
        sources = {each["target"]: each["source"] for each in services[role]["volumes"]}
        assert sources["/certificates"] == f"{role}-certificate"


def test_a_provided_model_stays_as_it_is(tmp_path, capsys):
    (tmp_path / "models" / "mine").mkdir(parents=True)
    (tmp_path / "models" / "mine" / "config.json").write_text("{}")
    assert models.main([str(tmp_path), "mine", "mine"]) == 0
    assert capsys.readouterr().out.count("already in") == 1


def test_an_unknown_model_is_reported(tmp_path, capsys):
    assert models.main([str(tmp_path), "nobodys"]) == 1
    assert "nobodys" in capsys.readouterr().err


def test_a_downloaded_model_is_checked_again(tmp_path):
    folder = tmp_path / "models" / "smollm2-135m-instruct"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / MANIFEST).write_text(json.dumps({"name": "of an older converter"}))
    assert not models.is_yours(folder)
