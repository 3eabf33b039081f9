"""What OpenTelemetry logs of streams whose caller left is no news; all else of it is."""

import logging

from presift.telemetry.tracing import Telemetry, exported


def test_contexts_that_have_ended_are_not_logged(caplog):
    log = logging.getLogger("opentelemetry.context")
    with exported("draft", Telemetry()):
        log.error("Failed to detach context")
        log.error("something else")
    assert [each.getMessage() for each in caplog.records] == ["something else"]
