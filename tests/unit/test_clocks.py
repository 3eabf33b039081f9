"""Waits, limits and ages are measured by the monotonic clock: the host's clock may be set at any time."""

import ast
import re
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
WALL = {
    *(("time", name) for name in ("time", "time_ns", "localtime", "gmtime", "strftime", "ctime")),
    *(("datetime", name) for name in ("now", "utcnow", "today")),
    ("date", "today"),
}
# gRPC counts a call's remaining time by the wall clock: so it is asked once, when the call begins.
REMAINING = {"draft/servicer.py": 1, "orchestrator/api/grpc/servicer.py": 2}
# Scripts that ask Redis for its time. All leases and limits in Redis live by its host's clock, as its expiry does.
REDIS_TIME = {"orchestrator/admission/concurrency_limit.py"}


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


def test_a_calls_remaining_time_is_read_once():
    sources = {str(path.relative_to(SERVICES)): path.read_text() for path in SERVICES.rglob("*.py")}
    assert {name: text.count(".time_remaining(") for name, text in sources.items() if ".time_remaining(" in text} == (
        REMAINING
    )
    assert sum(text.count("Deadline.within(context.time_remaining())") for text in sources.values()) == 3


def test_redis_is_asked_for_its_time_where_it_is_said():
    asks = re.compile(r"call\('time'\)", re.IGNORECASE)
    assert {str(path.relative_to(SERVICES)) for path in SERVICES.rglob("*.py") if asks.search(path.read_text())} == (
        REDIS_TIME
    )


def test_a_wall_clock_is_found():
    for source in ("import time\nuntil = time.time() + 5", "from time import time as now", "date.today()"):
        assert reads_wall_clock(source)
    assert not reads_wall_clock("import time\nuntil = time.monotonic() + 5")
