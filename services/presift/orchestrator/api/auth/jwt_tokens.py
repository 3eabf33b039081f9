"""JSON Web Tokens: who they say calls, if a key of ours signed that. Asymmetric algorithms alone: no shared secrets,
and never `none`. Keys come from a JWKS file, not from addresses that a token names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt

from presift.core.errors import InvalidRequest, Unauthenticated
from presift.orchestrator.domain.request import TENANT_PATTERN
from presift.rpc.security.file_watcher import FileWatcher, read_file

ALGORITHMS = frozenset(f"{family}{bits}" for family in ("RS", "PS", "ES") for bits in (256, 384, 512)) | {"EdDSA"}
# Clocks differ.
LEEWAY_S = 30.0


@dataclass(frozen=True, slots=True)
class Rules:
    """What a token must say: who issued it, for whom, and under which claim it names the tenant."""

    issuer: str
    audience: str
    tenant_claim: str = "tenant"


@dataclass(frozen=True, slots=True)
class KeySet:
    """Public keys by id; "" where the file gives one key and no id."""

    keys: Mapping[str, jwt.PyJWK] = field(repr=False)

    def key_for(self, key_id: object) -> jwt.PyJWK | None:
        """None where the token names none of ours; a token without an id has the only key there is."""
        if key_id is None and len(self.keys) == 1:
            return next(iter(self.keys.values()))
        return self.keys.get(key_id) if isinstance(key_id, str) else None


def load_key_set(path: Path) -> KeySet:
    """Raises PresiftError, naming the file and what is wrong, never quoting it."""
    return read_key_set(read_file("jwks_file", path), path.name)


def read_key_set(raw: bytes, name: str) -> KeySet:
    """Raises InvalidRequest for what is no JWKS, has a key twice, or one that is not asymmetric."""
    try:
        found = json.loads(raw)["keys"]
        keys = [jwt.PyJWK.from_dict(each) for each in found if each.get("use", "sig") == "sig"]
    except Exception as error:  # the library's own messages may quote the file
        limit = f"a JSON object with a list of JWKs as `keys` ({type(error).__name__})"
        raise InvalidRequest("jwks_file", name, limit) from None
    odd = [each.algorithm_name for each in keys if each.algorithm_name not in ALGORITHMS]
    if odd or not keys:
        raise InvalidRequest("jwks_file", odd[0] if odd else "no key", f"keys of {', '.join(sorted(ALGORITHMS))}")
    by_id = {each.key_id or "": each for each in keys}
    if len(by_id) != len(keys):
        raise InvalidRequest("jwks_file", name, "keys with different ids (`kid`)")
    return KeySet(by_id)


class TokenVerifier:
    """Verifies tokens by the keys that are in force."""

    def __init__(self, keys: FileWatcher[KeySet], rules: Rules) -> None:
        self._keys = keys
        self._rules = rules

    def tenant_of(self, token: str) -> str:
        """The tenant that the token proves. Raises Unauthenticated, which says what is wrong and quotes nothing."""
        try:
            key = self._keys.current().key_for(jwt.get_unverified_header(token).get("kid"))
            if key is None:
                raise Unauthenticated("the token names no key of ours")
            claims = self._verified(token, key)
        except jwt.ExpiredSignatureError:
            raise Unauthenticated("the token has expired") from None
        except jwt.PyJWTError as error:  # its text may quote the token
            raise Unauthenticated(f"the token does not hold ({type(error).__name__})") from None
        tenant = claims.get(self._rules.tenant_claim)
        if not isinstance(tenant, str) or re.fullmatch(TENANT_PATTERN, tenant) is None:
            raise Unauthenticated("the token names no tenant, or none that can be")
        return tenant

    def refresh(self) -> None:
        """Look whether the file has changed."""
        self._keys.current()

    def _verified(self, token: str, key: jwt.PyJWK) -> dict[str, Any]:
        # The key's own algorithm, never the one that the token asks for.
        return jwt.decode(
            token,
            key,
            algorithms=[key.algorithm_name],
            issuer=self._rules.issuer,
            audience=self._rules.audience,
            leeway=LEEWAY_S,
            options={"require": ["exp", "iss", "aud"]},
        )
