"""Of warnings that every request causes, one a minute is logged, and how many were left out."""

import logging

from presift.telemetry.repeated_warnings import RepeatedWarnings


def test_one_a_minute_is_logged_of_each_kind(caplog):
    now_s = 1000.0
    warnings = RepeatedWarnings(logging.getLogger("presift.x"), lambda: now_s)
    for _ in range(5):
        for kind in ("no draft", "too late"):
            warnings.warn(kind, f"{kind}: answered in full")
    now_s += 59.9
    warnings.warn("no draft", "too soon")
    assert caplog.messages == ["no draft: answered in full", "too late: answered in full"]
    now_s += 0.2
    warnings.warn("no draft", "still none")
    assert caplog.messages[2:] == ["still none (5 more since the last such line)"]
    now_s += 60
    warnings.warn("no draft", "100 % gone")
    assert caplog.messages[3:] == ["100 % gone"]
