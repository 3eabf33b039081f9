"""What the compose files say, layer on layer, as Compose would read them: for tests that want no docker.

Knows the few rules of merging that these files need: mappings are merged, variables of .env filled in, commands of a
later file replace, lists of volumes and ports are joined. `test_compose.py` holds it against Compose itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from dotenv import dotenv_values

ROOT = Path(__file__).parents[2]
BASE, OBSERVABILITY, TLS = "compose.yaml", "ops/compose.observability.yaml", "ops/compose.tls.yaml"
LAYERS = (BASE, OBSERVABILITY, TLS)
STACKS = ((BASE,), (BASE, OBSERVABILITY), (BASE, TLS), (BASE, OBSERVABILITY, TLS))
_JOINED, _REPLACED = {"volumes", "ports", "tmpfs"}, {"command", "entrypoint", "test"}
_VARIABLE = re.compile(r"\$\{(\w+)\}")

Values = dict[str, Any]


def variables(root: Path = ROOT) -> dict[str, str]:
    """Those of .env."""
    return {key: value or "" for key, value in dotenv_values(root / ".env").items()}


def stack(files: Sequence[str] = (BASE,), root: Path = ROOT) -> Values:
    """All that these files say together. Raises KeyError for a variable that .env does not have."""
    known, merged = variables(root), dict[str, Any]()
    for file in files:
        text = (root / file).read_text()
        merged = _merged(merged, yaml.safe_load(_VARIABLE.sub(lambda found: known[found[1]], text)))
    return merged


def _merged(under: Values, over: Values) -> Values:
    result = dict(under)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = _merged(result[key], value)
        elif key in _JOINED and isinstance(result.get(key), list):
            result[key] = [*result[key], *value]
        elif isinstance(value, list) and isinstance(result.get(key), list) and key not in _REPLACED:
            result[key] = [*result[key], *(each for each in value if each not in result[key])]
        else:
            result[key] = value
    return result
