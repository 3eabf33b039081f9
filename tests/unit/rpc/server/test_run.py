"""Running a service: what its end is to whoever started it."""

import logging

import pytest

from presift.core.errors import PresiftError
from presift.draft.settings import DraftSettings
from presift.rpc.server import run


@pytest.fixture
def settings(monkeypatch):
    monkeypatch.setattr(run.logs, "set_up", lambda level, look, on_drop: None)
    return DraftSettings(_cli_parse_args=["--model=m"])


@pytest.mark.parametrize(("clean", "code"), [(True, 0), (False, 1)])
def test_the_end_is_an_exit_code(settings, clean, code):
    async def serve(given):
        assert given is settings
        return clean

    assert run.run("draft", settings, serve) == code


def test_an_error_of_ours_is_logged_in_a_line(settings, caplog):
    async def serve(given):
        raise PresiftError("there is no such model")

    assert run.run("draft", settings, serve) == 1
    (record,) = caplog.records
    assert (record.levelno, record.getMessage(), record.exc_info) == (logging.ERROR, "there is no such model", None)


def test_a_metrics_address_that_cannot_be_had_ends_it(settings, caplog):
    async def serve(given):
        raise AssertionError("must not be served")

    assert run.run("draft", settings.model_copy(update={"metrics_listen": "203.0.113.1:1"}), serve) == 1
    assert "metrics_listen" in caplog.text
