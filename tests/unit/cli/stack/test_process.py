"""A service as a child process: it starts, becomes ready and is stopped."""

import signal
import time

import psutil
import pytest

from presift.cli.stack.process import ServiceFailed

pytestmark = pytest.mark.usefixtures("no_children")


def test_ready_line_names_the_address(start):
    service = start()
    assert service.wait_ready(30) == service.address == "127.0.0.1:4711"
    assert service.exit_code() is None and psutil.pid_exists(service.pid)


def test_an_exit_before_ready_has_code_and_log(start):
    service = start("--refuse")
    with pytest.raises(ServiceFailed, match=r"fake ended with code 3; see .*0\.log"):
        service.wait_ready(30)
    service.stop(1)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2026-01-01 10:00:00,123 ERROR presift.target cannot read: no such file", "cannot read: no such file"),
        ("Traceback (most recent call last):\nmodule.OddError: it is odd", "module.OddError: it is odd"),
        (
            '{"time": "t", "level": "ERROR", "logger": "x", "message": "cannot read: no such file"}',
            "cannot read: no such file",
        ),
        ("usage: x\n__main__.py: error: unrecognized arguments: --y", "unrecognized arguments: --y"),
    ],
)
def test_the_last_error_is_reported_with_the_log(start, line, message):
    service = start("--refuse", "--error", f"2026-01-01 09:00:00,1 ERROR x an earlier one\n{line}")
    with pytest.raises(ServiceFailed) as failure:
        service.wait_ready(30)
    assert str(failure.value) == f"fake ended with code 3: {message}; see {service.log}"
    service.stop(1)


def test_errors_of_an_earlier_run_are_not_reported(start, tmp_path):
    (tmp_path / "0.log").write_text("2026-01-01 09:00:00,1 ERROR x long ago\n")
    with pytest.raises(ServiceFailed, match=r"ended with code 3; see"):
        start("--refuse").wait_ready(30)


def test_silence_ends_in_a_timeout(start):
    service = start("--silent")
    with pytest.raises(ServiceFailed, match=r"not ready within 0\.3 s"):
        service.wait_ready(0.3)
    assert service.exit_code() is None  # stopping is up to the waiter


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


def test_stop_kills_a_service_that_ignores_sigterm(start):
    service = start("--deaf")
    service.wait_ready(30)
    assert service.stop(0.3) == -signal.SIGKILL
    assert not psutil.pid_exists(service.pid)


def test_a_service_that_ends_on_its_own_has_an_exit_code(start):
    service = start("--brief")
    assert service.wait_ready(30) == "127.0.0.1:4711"
    while service.exit_code() is None:
        time.sleep(0.01)
    assert service.exit_code() == service.stop(10) == 5


def test_environment_reaches_it(start):
    service = start(environment={"PYTHONUNBUFFERED": "1", "PRESIFT_TEST": "here"})
    service.wait_ready(30)
    assert psutil.Process(service.pid).environ()["PRESIFT_TEST"] == "here"
