"""Tokens: accepted only if signed by a known key in its own algorithm, for this service, in time and for a tenant."""

import base64
import hashlib
import hmac
import json
import math
import time
from dataclasses import replace

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from presift.core.errors import InvalidRequest, PresiftError, Unauthenticated
from presift.orchestrator.api.auth.factory import build_authenticator
from presift.orchestrator.api.auth.jwt_tokens import (
    LEEWAY_S,
    Identity,
    TokenRules,
    TokenVerifier,
    load_key_set,
    read_key_set,
)
from presift.orchestrator.config.settings import OrchestratorSettings
from presift.rpc.security.file_watcher import FileWatcher

RULES = TokenRules("https://issuer", "presift")


ALGORITHMS = {
    rsa.RSAPrivateKey: jwt.algorithms.RSAAlgorithm,
    ec.EllipticCurvePrivateKey: jwt.algorithms.ECAlgorithm,
    ed25519.Ed25519PrivateKey: jwt.algorithms.OKPAlgorithm,
}


def jwk(private, kid, **more):
    algorithm = next(each for kind, each in ALGORITHMS.items() if isinstance(private, kind))
    return json.loads(algorithm.to_jwk(private.public_key())) | {"kid": kid} | more


@pytest.fixture(scope="module")
def keys():
    return {
        "rsa": rsa.generate_private_key(65537, 2048),
        "other": rsa.generate_private_key(65537, 2048),
        "ec": ec.generate_private_key(ec.SECP256R1()),
        "ed": ed25519.Ed25519PrivateKey.generate(),
    }


@pytest.fixture
def verifier(keys):
    public = [jwk(keys["rsa"], "rsa", alg="RS256"), jwk(keys["ec"], "ec"), jwk(keys["ed"], "ed", use="sig")]
    found = read_key_set(json.dumps({"keys": public}).encode(), "jwks.json")
    return TokenVerifier(FileWatcher((), lambda: found), RULES)


def claims(**changes):
    now = int(time.time())
    good = {"iss": RULES.issuer, "aud": RULES.audience, "exp": now + 300, "iat": now, "tenant": "acme"}
    return {name: value for name, value in (good | changes).items() if value is not None}


def token(keys, name="rsa", algorithm="RS256", kid="rsa", **changes):
    return jwt.encode(claims(**changes), keys[name], algorithm, headers={"kid": kid} if kid else {})


@pytest.mark.parametrize(("name", "algorithm"), [("rsa", "RS256"), ("ec", "ES256"), ("ed", "EdDSA")])
def test_a_good_token_proves_its_tenant(keys, verifier, name, algorithm):
    assert verifier.verify(token(keys, name, algorithm, name)) == Identity("acme")


def unsigned(header, body):
    parts = (base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in (header, body))
    return ".".join(parts) + "."


def by_public_key(keys):
    """Signed with the public key as if it were a shared secret: the confusion of algorithms."""
    pem = (
        keys["rsa"]
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    head = unsigned({"alg": "HS256", "typ": "JWT", "kid": "rsa"}, claims())[:-1]
    signature = base64.urlsafe_b64encode(hmac.new(pem, head.encode(), hashlib.sha256).digest()).rstrip(b"=").decode()
    return f"{head}.{signature}"


LONG_AGO = int(time.time() - LEEWAY_S - 60)
BAD = {
    "alg none": lambda keys: unsigned({"alg": "none", "kid": "rsa"}, claims()),
    "alg None in capitals": lambda keys: unsigned({"alg": "NONE", "kid": "rsa"}, claims()),
    "no signature": lambda keys: token(keys).rpartition(".")[0] + ".",
    "signed with the public key": by_public_key,
    "another key": lambda keys: token(keys, "other"),
    "an unknown key": lambda keys: token(keys, "other", kid="nobody"),
    "no key named, and several": lambda keys: token(keys, kid=None),
    "another algorithm of the same key": lambda keys: token(keys, algorithm="RS512"),
    "expired": lambda keys: token(keys, exp=LONG_AGO),
    "without an end": lambda keys: token(keys, exp=None),
    "not yet": lambda keys: token(keys, nbf=int(time.time() + LEEWAY_S + 60)),
    "another issuer": lambda keys: token(keys, iss="https://elsewhere"),
    "no issuer": lambda keys: token(keys, iss=None),
    "another audience": lambda keys: token(keys, aud="another service"),
    "no audience": lambda keys: token(keys, aud=None),
    "no tenant": lambda keys: token(keys, tenant=None),
    "a tenant that cannot be": lambda keys: token(keys, tenant="a b"),
    "a tenant that is a list": lambda keys: token(keys, tenant=["acme"]),
    "changed": lambda keys: ".".join([token(keys).split(".")[0], token(keys, tenant="x").split(".")[1], "AAAA"]),
    "no token": lambda keys: "xylophone",
    "nothing": lambda keys: "",
    "dots": lambda keys: "..",
    "no header": lambda keys: "xylo.xylo.xylo",
    "a header nested too deeply": lambda keys: base64.b64encode(b"[" * 9_000).decode() + ".e30.AAAA",
    "an end that never comes": lambda keys: token(keys, exp=math.inf),
    "a beginning that never comes": lambda keys: token(keys, iat=math.inf),
}


@pytest.mark.parametrize("make", BAD.values(), ids=BAD)
def test_any_other_is_rejected_and_not_quoted(keys, verifier, make):
    bad = make(keys)
    with pytest.raises(Unauthenticated) as refused:
        verifier.verify(bad)
    said = str(refused.value)
    assert all(part not in said for part in bad.split(".") if len(part) > 3), said
    assert refused.value.__cause__ is None


def test_clocks_may_differ_a_little(keys, verifier):
    assert verifier.verify(token(keys, exp=int(time.time() - LEEWAY_S / 2))) == Identity("acme")


DAY_S = 86_400
CENTURY_S = 100 * 365 * DAY_S


@pytest.mark.parametrize(
    ("age_s", "rest_s", "is_accepted"),
    [
        (0, DAY_S, True),
        (DAY_S - 60, 60, True),
        (None, DAY_S, True),  # without `iat` its life begins now
        (0, DAY_S + 2 * LEEWAY_S, False),
        (29 * DAY_S, DAY_S, False),  # its last day
        (None, DAY_S + 2 * LEEWAY_S, False),
        (0, CENTURY_S, False),
        (None, 10**400, False),
        (-LEEWAY_S / 2, DAY_S + LEEWAY_S / 2, True),  # issued by a clock that is ahead
    ],
)
def test_a_tokens_life_has_an_upper_bound(keys, verifier, age_s, rest_s, is_accepted):
    now = int(time.time())
    made = token(keys, iat=None if age_s is None else int(now - age_s), exp=now + int(rest_s))
    if is_accepted:
        assert verifier.verify(made) == Identity("acme")
        return
    with pytest.raises(Unauthenticated, match=r"lifetime is more than 86400 s .jwt_max_lifetime_s"):
        verifier.verify(made)


def test_the_longest_life_is_a_setting(keys, verifier):
    month = TokenVerifier(verifier._keys, replace(RULES, max_lifetime_s=30 * DAY_S))
    made = token(keys, exp=int(time.time()) + 29 * DAY_S)
    assert month.verify(made) == Identity("acme")


def test_the_settings_reach_the_rules(keys, tmp_path):
    file = tmp_path / "jwks.json"
    file.write_text(json.dumps({"keys": [jwk(keys["rsa"], "rsa")]}))
    flags = ["--jwks-file", str(file), "--jwt-issuer", RULES.issuer, "--jwt-audience", RULES.audience]
    flags += ["--jwt-admin-claim", "ops", "--jwt-max-lifetime-s", "600"]
    keeper = build_authenticator(OrchestratorSettings(_cli_parse_args=flags))
    assert keeper.admit([("authorization", f"Bearer {token(keys, ops=True)}")]).is_admin
    with pytest.raises(Unauthenticated, match="more than 600 s"):
        keeper.admit([("authorization", f"Bearer {token(keys, exp=int(time.time()) + 700)}")])


def test_one_key_needs_no_name(keys):
    public = jwk(keys["rsa"], "rsa")
    del public["kid"]
    found = read_key_set(json.dumps({"keys": [public]}).encode(), "jwks.json")
    assert TokenVerifier(FileWatcher((), lambda: found), RULES).verify(token(keys, kid=None)) == Identity("acme")


def test_the_claim_is_a_setting(keys, verifier):
    rules = TokenRules(RULES.issuer, RULES.audience, "org")
    named = TokenVerifier(verifier._keys, rules)
    assert named.verify(token(keys, org="acme", tenant=None)) == Identity("acme")
    with pytest.raises(Unauthenticated):
        named.verify(token(keys))


@pytest.mark.parametrize("claim", [True, False, None, 1, "true", [True]])
def test_an_administrators_claim_is_true_and_named(keys, verifier, claim):
    """Under any other name, or as any other value, it proves nothing."""
    named = TokenVerifier(verifier._keys, replace(RULES, admin_claim="presift_admin"))
    assert named.verify(token(keys, presift_admin=claim)) == Identity("acme", is_admin=claim is True)
    assert not named.verify(token(keys, admin=True)).is_admin
    assert not verifier.verify(token(keys, admin=True, presift_admin=True)).is_admin


SECRET = {"kty": "oct", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA", "kid": "s", "alg": "HS256"}


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"keys": []}', '{"keys": [1]}', '{"keys": [{"kty": "RSA", "n": "zzz"}]}', "\x00"]
)
def test_an_invalid_key_set_is_rejected(text):
    with pytest.raises(InvalidRequest, match="jwks_file") as refused:
        read_key_set(text.encode(), "jwks.json")
    assert "zzz" not in str(refused.value)


def test_shared_secrets_are_rejected(keys):
    for public in ([SECRET], [jwk(keys["rsa"], "rsa"), SECRET]):
        with pytest.raises(InvalidRequest, match="jwks_file") as refused:
            read_key_set(json.dumps({"keys": public}).encode(), "jwks.json")
        assert SECRET["k"] not in str(refused.value)


def test_a_duplicate_id_is_rejected(keys):
    public = [jwk(keys["rsa"], "a"), jwk(keys["ec"], "a")]
    with pytest.raises(InvalidRequest, match="different ids"):
        read_key_set(json.dumps({"keys": public}).encode(), "jwks.json")


def test_keys_for_encryption_are_left_out(keys):
    public = [jwk(keys["rsa"], "rsa"), jwk(keys["other"], "enc", use="enc")]
    assert set(read_key_set(json.dumps({"keys": public}).encode(), "jwks.json").keys) == {"rsa"}


def test_a_changed_file_is_reloaded(keys, tmp_path):
    file = tmp_path / "jwks.json"
    file.write_text(json.dumps({"keys": [jwk(keys["rsa"], "rsa")]}))
    verifier = TokenVerifier(FileWatcher([file], lambda: load_key_set(file)), RULES)
    assert verifier.verify(token(keys)) == Identity("acme")
    file.write_text(json.dumps({"keys": [jwk(keys["other"], "rsa2")]}))
    assert verifier.verify(token(keys, "other", kid="rsa2")) == Identity("acme")
    with pytest.raises(Unauthenticated):
        verifier.verify(token(keys))
    file.write_text("{half")
    assert verifier.verify(token(keys, "other", kid="rsa2")) == Identity("acme")
    with pytest.raises(PresiftError):
        load_key_set(file)
