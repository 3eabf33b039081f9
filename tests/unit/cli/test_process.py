"""One service as a child process: watched until it is ready, stopped whatever it does."""

import signal
import time

import psutil
import pytest

from presift.cli.process import ServiceFailed

pytestmark = pytest.mark.usefixtures("no_children")


def test_ready_line_names_the_address(start):
    service = start()
    assert service.wait_ready(30) == service.address == "127.0.0.1:4711"
    assert service.exit_code() is None and psutil.pid_exists(service.pid)


def test_death_before_ready_is_told_with_code_and_log(start):
    service = start("--refuse")
    with pytest.raises(ServiceFailed, match=r"fake ended with code 3; see .*0\.log"):
        service.wait_ready(30)
    service.stop(1)


def test_silence_ends_in_a_timeout(start):
    service = start("--silent")
    with pytest.raises(ServiceFailed, match=r"not ready within 0\.3 s"):
        service.wait_ready(0.3)
    assert service.exit_code() is None  # whoever waits decides


def test_both_outputs_go_to_the_log(start):
    service = start("--polite")
    service.wait_ready(30)
    service.stop(10)
    log = service.log.read_text()
    assert "words on stderr" in log and "ready on 127.0.0.1:4711" in log and "drained" in log


def test_stop_lets_it_drain(start):
    service = start("--polite")
    service.wait_ready(30)
    assert service.stop(30) == 0


def test_stop_kills_what_does_not_listen(start):
    service = start("--deaf")
    service.wait_ready(30)
    assert service.stop(0.3) == -signal.SIGKILL
    assert not psutil.pid_exists(service.pid)


def test_what_ends_by_itself_has_an_exit_code(start):
    service = start("--brief")
    assert service.wait_ready(30) == "127.0.0.1:4711"
    while service.exit_code() is None:
        time.sleep(0.01)
    assert service.exit_code() == service.stop(10) == 5


def test_environment_reaches_it(start):
    service = start(environment={"PYTHONUNBUFFERED": "1", "PRESIFT_TEST": "here"})
    service.wait_ready(30)
    assert psutil.Process(service.pid).environ()["PRESIFT_TEST"] == "here"
