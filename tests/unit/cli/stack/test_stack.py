"""The local stack with fake services: it starts completely or leaves no process behind."""

import json
import os
import re
import signal
import socket
from dataclasses import replace
from functools import partial

import psutil
import pytest

from presift.cli.stack import stack as stack_module
from presift.cli.stack.process import ServiceFailed, ServiceProcess
from presift.cli.stack.run import check_vocabularies, run_until_stopped
from presift.cli.stack.stack import LocalStack, Observability, StackOptions, log_folder

pytestmark = [pytest.mark.usefixtures("no_children", "fakes"), pytest.mark.processes]


@pytest.fixture
def plan(monkeypatch, tmp_path):
    """Service names -> flags of the fakes that replace them; returns options for a stack of fakes."""
    started = []

    def plan(**flags):
        def launch(name, module, arguments, log, environment):
            assert module == f"presift.{name.partition('-')[0]}"
            given = ["fake_service", [name, *flags.get(name, ["--polite"]), *arguments]]
            started.append(ServiceProcess(name, *given, log, environment))
            return started[-1]

        monkeypatch.setattr(stack_module, "ServiceProcess", launch)
        given = {"cache_url": "memory://", "start_timeout_s": 30.0, "drain_s": 2.0, "listen": "127.0.0.1:0"}
        return partial(StackOptions, "d", "t", "tok", tmp_path / "logs", **given)

    plan.started = started
    return plan


def command(service):
    return psutil.Process(service.pid).cmdline()


def test_it_starts_in_order_and_stops_the_orchestrator_first(plan):
    lines = []
    with LocalStack(plan()(), lines.append) as stack:
        assert stack.address == "127.0.0.1:4711" and stack.failed() is None
        assert [service.name for service in stack.services] == ["target", "draft", "orchestrator"]
        line = command(stack.services[-1])
        for flag, value in (("--draft-address", "127.0.0.1:4711"), ("--tokenizer", "tok"), ("--drain-s", "2.0")):
            assert line[line.index(flag) + 1] == value
    assert [service.exit_code() for service in plan.started] == [0, 0, 0]
    stopped = [line.split()[0] for line in lines if "stopped" in line]
    assert stopped == ["orchestrator", "draft", "target"]


def test_the_cache_url_is_not_on_a_command_line(plan):
    options = plan()(cache_url="redis://:password@host")
    with LocalStack(options, lambda line: None) as stack:
        assert not any("password" in word for service in stack.services for word in command(service))
        environment = psutil.Process(stack.services[-1].pid).environ()
        assert environment["PRESIFT_ORCHESTRATOR_CACHE_URL"] == "redis://:password@host"


def test_with_observability_every_service_has_a_port_in_the_prometheus_file(plan, tmp_path):
    lines, observability = [], Observability(9500, "collector:4317")
    with LocalStack(plan()(observability=observability, drafts=2), lines.append) as stack:
        for index, service in enumerate(stack.services):
            line = command(service)
            assert line[line.index("--metrics-listen") + 1] == f"127.0.0.1:{9500 + index}"
            assert line[line.index("--otlp-endpoint") + 1] == "collector:4317"
        path = tmp_path / "logs" / "prometheus_targets.json"
        assert any(str(path) in line for line in lines)
        found = {entry["targets"][0]: entry["labels"] for entry in json.loads(path.read_text())}
        names = [service.name for service in stack.services]
    assert names == ["target", "draft", "draft-2", "orchestrator"]
    jobs = ["presift-target", "presift-draft", "presift-draft", "presift-orchestrator"]
    assert found == {
        f"127.0.0.1:{9500 + index}": {"job": job, "service": name}
        for index, (job, name) in enumerate(zip(jobs, names, strict=True))
    }


def test_without_observability_no_service_has_a_metrics_port(plan, tmp_path):
    with LocalStack(plan()(), lambda line: None) as stack:
        assert not any("--metrics-listen" in command(service) for service in stack.services)
    assert not (tmp_path / "logs" / "prometheus_targets.json").exists()


def test_a_taken_metrics_port_is_an_error_before_anything_starts(plan, signals):
    lines = []
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        first_port = taken.getsockname()[1] - 2  # the third service's is taken
        assert run_until_stopped(plan()(observability=Observability(first_port)), lines.append) == 1
    assert any("--metrics-from" in line for line in lines) and plan.started == []


def model_folder(path, *tokens):
    """A folder with the tokenizer of these tokens; without any if there are none."""
    path.mkdir()
    if tokens:
        vocabulary = {token: number for number, token in enumerate(tokens)}
        tokenizer = {"model": {"type": "WordLevel", "vocab": vocabulary}, "added_tokens": []}
        (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    return str(path)


@pytest.mark.parametrize("other", [("a", "c"), ()], ids=["other tokens", "no tokenizer"])
def test_a_draft_with_another_vocabulary_is_refused_before_anything_starts(plan, signals, tmp_path, other):
    lines, draft, target = [], model_folder(tmp_path / "d", *other), model_folder(tmp_path / "t", "a", "b")
    assert run_until_stopped(replace(plan()(), draft=draft, target=target), lines.append) == 1
    said = "error: draft d and target t do not share a vocabulary; use a draft of the target's family or"
    assert lines == [f"{said} --cross-vocabulary"] and plan.started == []


def test_vocabularies_that_fit_or_cannot_be_compared_yet_are_no_error(tmp_path):
    first, same = (model_folder(tmp_path / name, "a", "b") for name in "12")
    bare, empty = (model_folder(tmp_path / name) for name in "34")
    for draft, target in ((first, same), (bare, empty), ("owner/name", first), (first, "owner/name")):
        check_vocabularies(draft, target)


def test_with_cross_vocabulary_any_draft_starts(plan, signals, tmp_path):
    lines, draft, target = [], model_folder(tmp_path / "d", "a", "c"), model_folder(tmp_path / "t", "a", "b")
    flags = ["--cross-vocabulary", "--draft-tokenizer", draft]
    options = plan(target=["--brief"])(orchestrator_flags=flags)
    assert run_until_stopped(replace(options, draft=draft, target=target), lines.append) == 1
    assert plan.started and not any("share a vocabulary" in line for line in lines)


@pytest.mark.parametrize("broken", ["target", "draft", "orchestrator"])
def test_a_start_that_fails_leaves_nothing_behind(plan, broken):
    with (
        pytest.raises(ServiceFailed, match=f"{broken} ended with code 3"),
        LocalStack(plan(**{broken: ["--refuse"]})(), lambda line: None),
    ):
        raise AssertionError("it started")
    assert plan.started and all(service.exit_code() is not None for service in plan.started)


def test_a_start_that_takes_too_long_leaves_nothing_behind(plan):
    options = plan(draft=["--silent", "--deaf"])(
        start_timeout_s=0.5, drain_s=-9.5
    )  # a stop waits 10 s beyond the drain
    with pytest.raises(ServiceFailed, match="draft was not ready"), LocalStack(options, lambda line: None):
        raise AssertionError("it started")
    assert all(service.exit_code() is not None for service in plan.started)


def test_with_its_own_cache(plan):
    before = {child.pid for child in psutil.Process(os.getpid()).children(recursive=True)}
    with LocalStack(plan()(cache_url=None), lambda line: None) as stack:
        assert stack.cache_url.startswith("unix://")
        own = {service.pid for service in stack.services}
        extra = {child.pid for child in psutil.Process(os.getpid()).children()} - own - before
        assert len(extra) == 1


@pytest.fixture
def signals():
    """Puts this process's handlers back."""
    held = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in held.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_up_ends_cleanly_on_a_signal(plan, signals, number):
    lines = []

    def progress(line):
        lines.append(line)
        if line.startswith("presift is ready on 127.0.0.1:4711"):
            os.kill(os.getpid(), number)

    assert run_until_stopped(plan()(), progress) == 0
    assert [service.exit_code() for service in plan.started] == [0, 0, 0]
    assert any(line.startswith("presift is ready") for line in lines)


def test_up_ends_if_a_service_ends(plan, signals):
    lines = []
    assert run_until_stopped(plan(target=["--brief"])(), lines.append) == 1
    assert any("error: target ended with code 5" in line for line in lines)
    assert all(service.exit_code() is not None for service in plan.started)


def test_several_of_each(plan):
    lines = []
    options = plan()(drafts=2, targets=3, orchestrators=2, listen="127.0.0.1:600")
    with LocalStack(options, lines.append) as stack:
        names = ["target", "target-2", "target-3", "draft", "draft-2", "orchestrator", "orchestrator-2"]
        assert [service.name for service in stack.services] == names
        assert stack.addresses == ["127.0.0.1:4711"] * 2 and stack.address == "127.0.0.1:4711"
        for number, service in enumerate(stack.services[-2:]):
            line = command(service)
            assert line[line.index("--listen") + 1] == f"127.0.0.1:{600 + number}"
            assert line[line.index("--draft-address") + 1] == "127.0.0.1:4711,127.0.0.1:4711"
            assert line[line.index("--target-address") + 1].count("4711") == 3
    stopped = [line.split()[0] for line in lines if "stopped" in line]
    assert stopped == names[::-1]


def test_port_0_is_any_for_all(plan):
    with LocalStack(plan()(orchestrators=2, listen="127.0.0.1:0"), lambda line: None) as stack:
        for service in stack.services[-2:]:
            line = command(service)
            assert line[line.index("--listen") + 1] == "127.0.0.1:0"


def test_up_keeps_running_while_a_replica_is_left(plan, signals):
    lines = []

    def progress(line):
        lines.append(line)
        if line.startswith("warning"):
            os.kill(os.getpid(), signal.SIGTERM)

    assert run_until_stopped(plan(**{"draft-2": ["--brief"]})(drafts=2), progress) == 0
    assert any(
        re.match("warning: draft-2 ended with code 5; see .*; the other services keep running$", line) for line in lines
    )


def test_up_ends_with_the_last_of_a_kind(plan, signals):
    lines = []
    brief = {name: ["--brief"] for name in ("target", "target-2")}
    assert run_until_stopped(plan(**brief)(targets=2), lines.append) == 1
    assert any("error: target ended with code 5" in line for line in lines)


def test_up_keeps_running_without_a_draft(plan, signals):
    """Prompts are answered in full."""
    lines = []

    def progress(line):
        lines.append(line)
        if line.startswith("warning"):
            os.kill(os.getpid(), signal.SIGTERM)

    assert run_until_stopped(plan(draft=["--brief"])(), progress) == 0
    assert any(line.startswith("warning: draft ended with code 5; see ") for line in lines)


def test_up_reports_a_service_that_cannot_start(plan, signals):
    lines = []
    assert run_until_stopped(plan(target=["--refuse"])(), lines.append) == 1
    assert any("error: target ended with code 3" in line for line in lines)


def test_a_forbidden_address_is_an_error_before_anything_starts(plan, monkeypatch):
    lines = []
    options = plan()(listen="0.0.0.0:50051")
    assert run_until_stopped(options, lines.append) == 1
    assert not plan.started and len(lines) == 1 and "--insecure" in lines[0]
    assert run_until_stopped(plan()(listen="nowhere"), lines.append) == 1
    assert not plan.started and "listen" in lines[1]


@pytest.mark.parametrize("taken", [0, 1])
def test_a_taken_port_is_an_error_before_anything_starts(plan, signals, taken):
    with socket.socket() as first, socket.socket() as second:
        for each in (first, second):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        first.bind(("127.0.0.1", 0))
        first.listen()
        port, lines = first.getsockname()[1], []
        options = plan()(orchestrators=2, listen=f"127.0.0.1:{port - taken}")
        assert run_until_stopped(options, lines.append) == 1
    assert not plan.started and len(lines) == 1
    assert lines[0].startswith(f"error: cannot listen on 127.0.0.1:{port}: ") and "--listen" in lines[0]


def test_ports_above_the_last_are_an_error(plan, signals):
    lines = []
    assert run_until_stopped(plan()(orchestrators=2, listen="127.0.0.1:65535"), lines.append) == 1
    assert not plan.started and "127.0.0.1:65536" in lines[0]


def test_the_last_error_of_a_service_is_reported(plan, signals):
    lines = []
    error = ["--brief", "--error", "2026-01-01 10:00:00,1 ERROR presift.draft the model is away"]
    assert run_until_stopped(plan(target=error)(), lines.append) == 1
    assert any(line.startswith("error: target ended with code 5: the model is away; see ") for line in lines)


def test_a_bad_policy_file_is_an_error_before_anything_starts(plan, signals, tmp_path):
    path, lines = tmp_path / "policy.yaml", []
    path.write_text("capacity: 700\nwarp: 1\n")
    assert run_until_stopped(plan()(orchestrator_flags=["--policy-file", str(path)]), lines.append) == 1
    assert not plan.started and lines == ["error: policy.yaml:2: warp: unknown key (it is 1)"]


def test_stacks_on_two_ports_write_to_two_folders(tmp_path):
    folders = {log_folder(tmp_path, f"127.0.0.1:{port}") for port in (50051, 50052, 0)}
    assert len(folders) == 3 and tmp_path / "logs" / "50051" in folders


def test_http_addresses_are_passed_and_reported(plan):
    assert plan()().http_listens == []
    options = plan(orchestrator=["--polite", "--http"])(http_listen="127.0.0.1:8000", orchestrators=2)
    assert options.http_listens == ["127.0.0.1:8000", "127.0.0.1:8001"]
    with LocalStack(options, lambda line: None) as stack:
        assert stack.http_addresses == ["127.0.0.1:4712"]  # the fakes print one address, and it is the same
        lines = [command(service) for service in stack.services if service.name.startswith("orchestrator")]
        assert [line[line.index("--http-listen") + 1] for line in lines] == options.http_listens


def test_a_taken_http_port_is_an_error_before_anything_starts(plan):
    lines = []
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert run_until_stopped(plan()(http_listen=address), lines.append) == 1
    assert f"cannot listen on {address}" in lines[-1] and "choose another port with --http-listen" in lines[-1]
    assert run_until_stopped(plan()(orchestrator_flags=["--http-origins", "*"]), lines.append) == 1
    assert "http_origins is *" in lines[-1]
    assert run_until_stopped(plan()(http_listen="8001"), lines.append) == 1
    assert lines[-1] == "error: http_listen: must be HOST:PORT, for example 127.0.0.1:8000"
    assert run_until_stopped(plan()(http_listen="0.0.0.0:0"), lines.append) == 1
    assert "http_listen is 0.0.0.0:0, open to unauthenticated callers" in lines[-1] and plan.started == []
