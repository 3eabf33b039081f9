"""Waits, limits and ages are measured by the monotonic clock: the host's clock may be set at any time."""

import ast
from pathlib import Path

SERVICES = Path(__file__).parents[2] / "services" / "presift"

# Files that read the wall clock, for dates that users or traces see, and for those on which keys and tokens end.
DATES = {
    "draft/calibration.py",
    "orchestrator/api/auth/authenticator.py",
    "orchestrator/api/auth/jwt_tokens.py",
    "orchestrator/api/http/completions.py",
    "orchestrator/api/http/models.py",
    "orchestrator/api/http/responses/rendering.py",
    "orchestrator/config/policy_file.py",
    "orchestrator/quality/guard.py",
    "target/request_metrics.py",
}
WALL = {("time", "time"), ("time", "time_ns"), ("datetime", "now"), ("datetime", "utcnow"), ("datetime", "today")}


def reads_wall_clock(source):
    """Also `from time import time`, under whatever name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if (node.value.id, node.attr) in WALL:
                return True
        elif isinstance(node, ast.ImportFrom) and {(node.module, each.name) for each in node.names} & WALL:
            return True
    return False


def test_the_wall_clock_is_read_for_dates_alone():
    read = {str(path.relative_to(SERVICES)) for path in SERVICES.rglob("*.py") if reads_wall_clock(path.read_text())}
    assert read == DATES


def test_a_wall_clock_is_found():
    for source in ("import time\nuntil = time.time() + 5", "from time import time as now", "datetime.now(UTC)"):
        assert reads_wall_clock(source)
    assert not reads_wall_clock("import time\nuntil = time.monotonic() + 5")
