"""Authentication against files that change."""

import asyncio
from datetime import UTC, date, datetime, timedelta

import pytest
from pydantic import SecretStr

from presift.core.errors import InvalidRequest, PermissionDenied, PresiftError, Unauthenticated
from presift.orchestrator.api.auth import authenticator as authenticator_module
from presift.orchestrator.api.auth.api_keys import digest_of, new_key
from presift.orchestrator.api.auth.factory import build_authenticator
from presift.orchestrator.config.settings import OrchestratorSettings
from presift.orchestrator.domain.caller import Caller, TenantLimits

KEY, OTHER = new_key(), new_key()


def text(**keys):
    """tenant -> key."""
    lines = [f"  - {{name: {tenant}, tenant: {tenant}, sha256: {digest_of(key)}}}" for tenant, key in keys.items()]
    return "\n".join(["keys:", *lines, "tenants:", "  acme: {concurrency: 2}"])


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "keys.yaml"
    path.write_text(text(acme=KEY, other=OTHER))
    return path


def settings(**values):
    return OrchestratorSettings(_cli_parse_args=False, **values)


@pytest.fixture
def authenticator(file):
    return build_authenticator(settings(api_keys_file=file, tenant_tokens_per_minute=700, tenant_concurrency=5))


def shows(key, *more):
    return [("authorization", f"Bearer {key}"), *more]


def test_a_key_proves_its_tenant_and_its_limits(authenticator):
    assert authenticator.admit(shows(KEY)) == Caller("acme", TenantLimits(700, 2), True)
    assert authenticator.admit(shows(OTHER)) == Caller("other", TenantLimits(700, 5), True)


@pytest.mark.parametrize(("days", "is_accepted"), [(1, True), (0, True), (-1, False), (-400, False)])
def test_a_key_is_accepted_through_its_last_day(tmp_path, monkeypatch, days, is_accepted):
    today = date(2027, 6, 30)
    monkeypatch.setattr(authenticator_module, "datetime", Clock(datetime(2027, 6, 30, 23, 59, tzinfo=UTC)))
    path = tmp_path / "keys.yaml"
    path.write_text(f"{entry_line(KEY)}, expires: {today + timedelta(days)}}}")
    keeper = build_authenticator(settings(api_keys_file=path))
    if is_accepted:
        assert keeper.admit(shows(KEY)).tenant == "acme"
        return
    with pytest.raises(Unauthenticated, match=f"expired on {today + timedelta(days)}"):
        keeper.admit(shows(KEY))


def test_a_key_ends_without_a_change_of_its_file(tmp_path, monkeypatch):
    path = tmp_path / "keys.yaml"
    path.write_text(f"{entry_line(KEY)}, expires: 2027-06-30}}")
    keeper = build_authenticator(settings(api_keys_file=path))
    clock = Clock(datetime(2027, 6, 30, tzinfo=UTC))
    monkeypatch.setattr(authenticator_module, "datetime", clock)
    assert keeper.admit(shows(KEY)).tenant == "acme"
    clock.time = datetime(2027, 7, 1, tzinfo=UTC)
    with pytest.raises(Unauthenticated, match="expired"):
        keeper.admit(shows(KEY))


class Clock:
    """What the module reads the date from."""

    def __init__(self, time):
        self.time = time

    def now(self, zone):
        assert zone is UTC
        return self.time


def entry_line(key):
    """A key file whose one entry is still open."""
    return f"keys:\n- {{name: a, tenant: acme, sha256: {digest_of(key)}"


def test_a_tenant_may_name_itself_and_no_other(authenticator):
    assert authenticator.admit(shows(KEY, ("presift-tenant", "acme"))).tenant == "acme"
    for named in ("other", "nobody", "ACME"):
        with pytest.raises(PermissionDenied):
            authenticator.admit(shows(KEY, ("presift-tenant", named)))
    with pytest.raises(InvalidRequest):
        authenticator.admit(shows(KEY, ("presift-tenant", "a b")))


BAD = {
    "nothing": None,
    "no credential": [("presift-tenant", "acme")],
    "an empty one": [("authorization", "")],
    "no scheme": [("authorization", KEY)],
    "another scheme": [("authorization", f"Basic {KEY}")],
    "two": shows(KEY, ("authorization", f"Bearer {KEY}")),
    "unknown": shows(new_key()),
    "the digest": shows(digest_of(KEY)),
    "a part": shows(KEY[:-1]),
    "a token where none are": shows("a.b.c"),
}


@pytest.mark.parametrize("metadata", BAD.values(), ids=BAD)
def test_invalid_credentials_are_rejected(authenticator, metadata):
    with pytest.raises(Unauthenticated) as refused:
        authenticator.admit(metadata)
    assert KEY[4:20] not in str(refused.value)


def test_a_revoked_key_is_rejected_and_an_invalid_file_ignored(authenticator, file, caplog):
    file.write_text(text(other=OTHER))
    with pytest.raises(Unauthenticated):
        authenticator.admit(shows(KEY))
    assert authenticator.admit(shows(OTHER)).tenant == "other"
    file.write_text(text(other=OTHER, acme=KEY) + f"\n{KEY}: 1\n")
    asyncio.run(authenticator.reload())
    assert authenticator.admit(shows(OTHER)).tenant == "other"
    with pytest.raises(Unauthenticated):
        authenticator.admit(shows(KEY))
    assert "stay in use" in caplog.text and KEY not in caplog.text
    file.unlink()
    assert authenticator.admit(shows(OTHER)).tenant == "other"


def test_without_keys_and_tokens_there_is_no_authenticator():
    assert build_authenticator(settings()) is None
    assert not settings().knows_callers


def test_with_keys_or_tokens_callers_are_known(file):
    assert settings(api_keys_file=file).knows_callers and settings(jwks_file=file).knows_callers


@pytest.mark.parametrize(
    "values",
    [
        {"tenant_concurrency": 1},
        {"jwt_issuer": "i"},
        {"jwt_audience": "a"},
        {"jwks_file": "/nowhere", "jwt_issuer": "i"},
        {"jwks_file": "/nowhere", "jwt_audience": "a"},
        {"jwks_file": "/nowhere", "jwt_issuer": "i", "jwt_audience": "a"},
        {"api_keys_file": "/nowhere"},
    ],
)
def test_invalid_settings_are_rejected(values):
    with pytest.raises(PresiftError):
        build_authenticator(settings(**values))


def test_it_knows_whether_any_tenant_has_limits(file):
    assert build_authenticator(settings(api_keys_file=file)).sets_limits
    file.write_text(text(acme=KEY).partition("tenants:")[0])
    assert not build_authenticator(settings(api_keys_file=file)).sets_limits
    assert build_authenticator(settings(api_keys_file=file, tenant_concurrency=5)).sets_limits


def test_keys_without_a_salt_are_warned_of(file, tmp_path, caplog):
    salt = tmp_path / "salt"
    salt.write_text("xylophone")
    for values in ({"tenant_salt": SecretStr("xylophone")}, {"tenant_salt_file": salt}):
        build_authenticator(settings(api_keys_file=file, **values))
    build_authenticator(settings())
    assert not warnings(caplog)
    build_authenticator(settings(api_keys_file=file))
    (warning,) = warnings(caplog)
    assert warning.levelname == "WARNING" and "tenant_salt is not set" in warning.getMessage()


def warnings(caplog):
    return [record for record in caplog.records if record.name.startswith("presift")]


def test_the_salt_is_not_in_the_repr():
    assert "xylophone" not in repr(settings(tenant_salt=SecretStr("xylophone")))
