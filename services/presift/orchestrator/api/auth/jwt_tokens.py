"""JSON Web Tokens: verified with the keys of a JWKS file, never with keys from an address that a token names.

Only asymmetric algorithms are accepted: no shared secrets, and never `none`.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt

from presift.core.errors import InvalidRequest, Unauthenticated
from presift.orchestrator.domain.request import TENANT_PATTERN
from presift.rpc.security.file_watcher import FileWatcher, read_file

ALGORITHMS = frozenset(f"{family}{bits}" for family in ("RS", "PS", "ES") for bits in (256, 384, 512)) | {"EdDSA"}
# Seconds by which clocks may differ.
LEEWAY_S = 30.0


@dataclass(frozen=True, slots=True)
class TokenRules:
    """What a token must contain: its issuer, its audience, and the claim that names the tenant. A token whose
    `admin_claim` is true is an administrator's; if that is unset, none is. From its beginning (`iat`, now if it has
    none) to its end (`exp`) a token has at most `max_lifetime_s` seconds."""

    issuer: str
    audience: str
    tenant_claim: str = "tenant"
    admin_claim: str | None = None
    max_lifetime_s: float = 86_400.0


@dataclass(frozen=True, slots=True)
class Identity:
    """What a token proves."""

    tenant: str
    is_admin: bool = False


@dataclass(frozen=True, slots=True)
class KeySet:
    """Public keys by id; the id of a single key may be ""."""

    keys: Mapping[str, jwt.PyJWK] = field(repr=False)

    def key_for(self, key_id: object) -> jwt.PyJWK | None:
        """None if the id is unknown. A token without an id is verified with the only key, if there is one."""
        if key_id is None and len(self.keys) == 1:
            return next(iter(self.keys.values()))
        return self.keys.get(key_id) if isinstance(key_id, str) else None


def load_key_set(path: Path) -> KeySet:
    """Raises PresiftError, which names the file and the problem and never quotes the file."""
    return read_key_set(read_file("jwks_file", path), path.name)


def read_key_set(raw: bytes, name: str) -> KeySet:
    """Raises InvalidRequest for anything but a JWKS, for a duplicate key, and for one that is not asymmetric."""
    try:
        found = json.loads(raw)["keys"]
        keys = [jwt.PyJWK.from_dict(each) for each in found if each.get("use", "sig") == "sig"]
    except Exception as error:  # the library's own messages may quote the file
        limit = f"a JSON object with a list of JWKs as `keys` ({type(error).__name__})"
        raise InvalidRequest("jwks_file", name, limit) from None
    unsupported = [each.algorithm_name for each in keys if each.algorithm_name not in ALGORITHMS]
    if unsupported or not keys:
        raise InvalidRequest(
            "jwks_file", unsupported[0] if unsupported else "no key", f"keys of {', '.join(sorted(ALGORITHMS))}"
        )
    by_id = {each.key_id or "": each for each in keys}
    if len(by_id) != len(keys):
        raise InvalidRequest("jwks_file", name, "keys with different ids (`kid`)")
    return KeySet(by_id)


class TokenVerifier:
    """Verifies tokens with the current keys."""

    def __init__(self, keys: FileWatcher[KeySet], rules: TokenRules) -> None:
        self._keys = keys
        self._rules = rules

    def verify(self, token: str) -> Identity:
        """The identity that the token proves. Raises Unauthenticated, which names the problem and quotes nothing."""
        try:
            key = self._keys.current().key_for(jwt.get_unverified_header(token).get("kid"))
            if key is None:
                raise Unauthenticated("the token was signed with an unknown key")
            claims = self._verified(token, key)
        except jwt.ExpiredSignatureError:
            raise Unauthenticated("the token has expired") from None
        except jwt.PyJWTError as error:  # its text may quote the token
            raise Unauthenticated(f"invalid token ({type(error).__name__})") from None
        self._check_lifetime(claims)
        tenant = claims.get(self._rules.tenant_claim)
        if not isinstance(tenant, str) or re.fullmatch(TENANT_PATTERN, tenant) is None:
            raise Unauthenticated("the token names no tenant, or an invalid one")
        admin = self._rules.admin_claim
        return Identity(tenant, is_admin=admin is not None and claims.get(admin) is True)

    def reload(self) -> None:
        """Check whether the file has changed."""
        self._keys.current()

    def _check_lifetime(self, claims: Mapping[str, Any]) -> None:
        """Raise Unauthenticated for a token that is accepted for too long: nothing else ends it before its time."""
        now, longest_s = int(time.time()), self._rules.max_lifetime_s
        begin = min(now, int(claims.get("iat", now)))
        if int(claims["exp"]) - begin > longest_s + LEEWAY_S:
            raise Unauthenticated(f"the token's lifetime is more than {longest_s:g} s (jwt_max_lifetime_s)")

    def _verified(self, token: str, key: jwt.PyJWK) -> dict[str, Any]:
        # The key's own algorithm, never the one that the token requests.
        return jwt.decode(
            token,
            key,
            algorithms=[key.algorithm_name],
            issuer=self._rules.issuer,
            audience=self._rules.audience,
            leeway=LEEWAY_S,
            options={"require": ["exp", "iss", "aud"]},
        )
