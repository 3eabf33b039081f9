"""The command of the GPU checks, with processes that only pretend to be engines."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from itertools import combinations, product
from pathlib import Path

import pytest
from gpu import processes, run
from gpu.configurations import BACKENDS, KV_TYPES, NOT_TAKEN, PAGES, configurations, timings
from gpu.one_configuration import Report, _refused
from gpu.processes import Job
from gpu.results import FAILED, PASSED, REFUSED, RUNNING, Store, is_failed, table

EVERY = configurations(timings("8b", gpus=1))
NAMES = [each.name for each in EVERY]
# In their order.
FEW = ["fa3", "flashinfer", "timings-8b", "tp2", "triton", "fa3-e4m3"]
CHECKED = [each for each in EVERY if each.backend is not None]
FACTORS = (BACKENDS, (True, False), (True, False), PAGES, KV_TYPES)
MACHINE = {"gpu": "H200", "gpus": 1, "torch": "2", "sglang": "0.5.21", "rehearse": False}

# Does for each configuration what `acts` says, and notes that it ran. A hanging one has a child in its session.
CHILD = """
    import json, os, subprocess, sys, time
    from pathlib import Path
    here = Path(__file__).parent
    if sys.argv[1] == "--describe":
        print("a warning")
        print(json.dumps({"gpu": "H200", "gpus": 1, "torch": "2", "sglang": "0.5.21"}))
        sys.exit()
    given = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
    chosen = json.loads(given["--configuration"])
    with (here / "ran").open("a") as ran:
        print(chosen["name"], file=ran)
    acts = json.loads((here / "acts.json").read_text())
    act = acts.get(chosen["name"], "passed")
    check = {"holds": act != "failed", "figures": {"alone": 0.5}}
    result = {"name": chosen["name"], "machine": json.loads(given["--machine"]), "seconds": 1.0}
    result |= {"status": act, "checks": {"keep-all": check}, "reason": "", "ran_on": "rehearsed"}
    if act == "refused":
        result |= {"checks": {}, "reason": "quantised KV cache"}
    if act in ("hang", "crash"):
        result["status"] = "running"
    Path(given["--out"]).write_text(json.dumps(result))
    if act == "hang":
        other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        (here / "pids").write_text(f"{os.getpid()} {other.pid}")
        time.sleep(600)
    if act == "crash":
        print("CUDA error: out of memory")
        sys.exit(3)
"""


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """(acts, arguments) -> exit status, what was printed, and which configurations ran."""
    child = tmp_path / "child.py"
    child.write_text(textwrap.dedent(CHILD))
    monkeypatch.setattr(run, "configurations", lambda timed: [each for each in EVERY if each.name in FEW])
    # The limits of a rehearsal are seconds.
    monkeypatch.setattr(run, "_REHEARSAL", 0.05)

    def call(acts, *arguments):
        (tmp_path / "acts.json").write_text(json.dumps(acts))
        (tmp_path / "ran").write_text("")
        given = ["--results", str(tmp_path), "--budget-s", "60", *arguments]
        status = run.main(given, child)
        return status, capsys.readouterr().out, (tmp_path / "ran").read_text().split()

    return call


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def pairs(some, factors):
    return {
        (one, each.factors[one], other, each.factors[other])
        for each in some
        for one, other in combinations(range(factors), 2)
    }


def wanted(factors):
    return {
        (one, a, other, b)
        for one, other in combinations(range(factors), 2)
        for a, b in product(FACTORS[one], FACTORS[other])
        if (a, b) != NOT_TAKEN
    }


def test_every_pair_of_values_is_in_a_configuration():
    assert wanted(5) <= pairs(CHECKED, 5)


def test_every_pair_but_those_of_quantised_kv_is_in_one_that_drops_kv():
    assert wanted(4) <= pairs([each for each in CHECKED if not each.refusal], 4)


def test_what_is_not_taken_is_in_none_and_names_are_distinct():
    assert not [each for each in EVERY if (each.backend, each.kv_type) == NOT_TAKEN]
    assert len(set(NAMES)) == len(NAMES)


def test_quantised_kv_is_expected_to_be_refused_as_the_plugin_words_it():
    source = Path(run.HERE.parents[2] / "services/presift/target/sglang_plugin/support.py").read_text()
    refused = [each for each in EVERY if each.refusal]
    assert {each.name for each in EVERY if each.kv_type != "auto"} <= {each.name for each in refused}
    assert all(f'"{each.refusal}' in source for each in refused)


@pytest.mark.parametrize(
    ("shape", "gpus", "ranks"),
    [("8b", 0, 1), ("8b", 4, 1), ("70b", 1, 1), ("70b", 3, 2), ("70b", 4, 4), ("70b", 16, 8)],
)
def test_the_large_shape_is_divided_over_the_gpus(shape, gpus, ranks):
    assert timings(shape, gpus=gpus).tensor_parallel == ranks


def test_all_pass_and_what_needs_more_gpus_is_named(command):
    status, printed, ran = command({"fa3-e4m3": "refused"})
    assert status == 0
    assert sorted(ran) == sorted(set(FEW) - {"tp2"})
    assert "not run: tp2: needs 2 GPUs" in printed
    assert "5 of 6 configurations have run: 4 passed, 1 refused, 0 failed" in printed
    assert next(line for line in printed.split("\n") if line.startswith("fa3-e4m3")).endswith("quantised KV cache")


def test_in_a_rehearsal_two_ranks_are_two_processes(command):
    status, printed, ran = command({}, "--rehearse", "--only", "tp2,fa3")
    assert (status, ran) == (0, ["fa3", "tp2"])
    assert printed.count("(rehearsed)") == 2


@pytest.mark.parametrize("act", ["failed", "crash"])
def test_a_failure_is_the_exit_status_and_the_others_run(command, act):
    status, printed, ran = command({"fa3": act}, "--only", "flashinfer,fa3,triton")
    assert status == 1
    assert len(ran) == 3
    assert "2 passed, 0 refused, 1 failed" in printed
    if act == "failed":
        assert 'FAIL fa3: keep-all {"alone": 0.5}' in printed
    else:
        assert "FAIL fa3: the process ended with status 3" in printed
        assert "CUDA error: out of memory" in printed


def test_a_configuration_that_hangs_is_ended_with_its_children(command, tmp_path):
    started_s = time.monotonic()
    status, printed, ran = command({"fa3": "hang"}, "--rehearse", "--only", "fa3,triton")
    assert time.monotonic() - started_s < 60
    assert status == 1
    assert ran == ["fa3", "triton"]
    assert "FAIL fa3: ended at its limit of 10 s" in printed
    assert not [pid for pid in (tmp_path / "pids").read_text().split() if is_alive(pid)]


def test_what_the_budget_ends_is_not_run_and_the_next_call_continues(command, monkeypatch):
    monkeypatch.setattr(processes, "_LEAST_S", 0.0)
    assert command({"flashinfer": "failed"}, "--only", "flashinfer")[0] == 1
    status, printed, _ = command({"fa3": "hang"}, "--budget-s", "2", "--at-once", "1")
    assert status == 1
    assert "FAIL flashinfer" in printed and "FAIL fa3" not in printed
    assert "not run yet: fa3, timings-8b, triton, fa3-e4m3 (the same command continues)" in printed

    status, printed, ran = command({})
    assert (status, sorted(ran)) == (1, ["fa3", "fa3-e4m3", "timings-8b", "triton"])
    assert "FAIL flashinfer" in printed and "not run yet" not in printed
    assert command({})[2] == []
    assert command({}, "--only", "flashinfer")[::2] == (0, ["flashinfer"])
    assert len(command({}, "--fresh")[2]) == len(FEW) - 1


def test_little_time_starts_nothing(command):
    status, printed, ran = command({}, "--budget-s", "10")
    assert (status, ran) == (0, [])
    assert f"0 of {len(FEW)} configurations have run" in printed


def test_results_of_another_machine_are_made_anew(command, tmp_path):
    command({}, "--only", "fa3")
    path = tmp_path / "gpu" / "fa3.json"
    result = json.loads(path.read_text())
    result["machine"]["gpu"] = "another"
    path.write_text(json.dumps(result))
    assert "fa3" in command({})[2]


def test_without_a_gpu_nothing_is_checked(tmp_path):
    child = tmp_path / "child.py"
    child.write_text(textwrap.dedent(CHILD).replace('"gpus": 1', '"gpus": 0'))
    with pytest.raises(SystemExit, match="no GPU at hand"):
        run.main(["--results", str(tmp_path)], child)


def test_if_every_configuration_is_refused_nothing_was_checked(command):
    status, printed, _ = command(dict.fromkeys(FEW, "refused"))
    assert status == 1 and "0 passed" in printed


def test_an_unknown_name_is_refused(command):
    with pytest.raises(SystemExit, match="--only fa4: no such configuration; there are fa3, flashinfer"):
        command({}, "--only", "fa3,fa4")


def job(tmp_path, name, source, **others):
    return Job(name, [sys.executable, "-c", source], tmp_path / f"{name}.log", **{"limit_s": 20.0} | others)


MEETS = """
import sys, time
from pathlib import Path
print(time.time(), flush=True)
while not Path(sys.argv[1]).exists():
    time.sleep(0.02)
print(time.time())
"""


def test_several_run_at_once_but_what_runs_alone_meets_no_other(tmp_path):
    def waiting_for(name, other, **others):
        command = [sys.executable, "-c", MEETS, str(tmp_path / f"{other}.log")]
        return Job(name, command, tmp_path / f"{name}.log", 20.0, **others)

    jobs = [waiting_for("a", "b"), waiting_for("b", "a"), waiting_for("c", "c", runs_alone=True), waiting_for("d", "a")]
    endings = []
    processes.run(jobs, 60, 2, endings.append)
    assert [ending.code for ending in endings] == [0] * 4
    begin, end = map(float, (tmp_path / "c.log").read_text().split())
    for other in "abd":
        its_begin, its_end = map(float, (tmp_path / f"{other}.log").read_text().split())
        assert its_end < begin or end < its_begin


def test_an_interruption_leaves_no_process(tmp_path):
    source = "import os, sys, time; print(os.getpid(), flush=True); time.sleep(600)"
    jobs = [job(tmp_path, "short", "pass"), job(tmp_path, "long", source)]

    def interrupt(ending):
        while not (tmp_path / "long.log").read_text().strip():
            time.sleep(0.02)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        processes.run(jobs, 60, 2, interrupt)
    assert not is_alive(int((tmp_path / "long.log").read_text()))


def test_a_child_that_outlives_its_process_is_ended(tmp_path):
    source = (
        "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']).pid)"
    )
    endings = []
    processes.run([job(tmp_path, "parent", source)], 60, 1, endings.append)
    assert [ending.code for ending in endings] == [0]
    assert not is_alive(int((tmp_path / "parent.log").read_text()))


def test_it_dies_with_the_command(tmp_path):
    """Even if that is killed."""
    source = f"""
        import sys
        sys.path.insert(0, {str(run.HERE.parent)!r})
        from pathlib import Path
        from gpu.processes import Job, run
        code = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
        run([Job("x", [sys.executable, "-c", code], Path({str(tmp_path / "x.log")!r}), 60)], 60, 1, print)
    """
    command = subprocess.Popen([sys.executable, "-c", textwrap.dedent(source)])
    log = tmp_path / "x.log"
    while not (log.exists() and log.read_text().strip()):
        time.sleep(0.02)
    command.send_signal(signal.SIGKILL)
    command.wait()
    pid = int(log.read_text())
    for _ in range(200):
        if not is_alive(pid):
            break
        time.sleep(0.02)
    assert not is_alive(pid)


SIDE = {"tokens_per_s": 50.0, "kv_tokens": 8192, "renewals": 0, "skipped": 0}
ROW = {
    "tokens": 8192,
    "first_token_s": {"full": 0.5, "spec_kv": 0.6, "renewal": 0.6},
    "decode": [
        {
            "batch": 1,
            "full": SIDE,
            "spec_kv": SIDE | {"tokens_per_s": 100.0, "kv_tokens": 1025},
            "renewal": SIDE | {"tokens_per_s": 75.0, "kv_tokens": 1025, "renewals": 10, "skipped": 2},
        }
    ],
}


def put(store, name, status, **others):
    result = {"name": name, "machine": store.machine, "status": status, "checks": {}, "reason": "", "seconds": 40.0}
    store.path(name).write_text(json.dumps(result | others))


def test_the_table(tmp_path):
    store = Store(tmp_path, MACHINE)
    chosen = [each for each in EVERY if each.name in FEW]
    held = {"holds": True, "figures": {}}
    put(store, "flashinfer", PASSED, checks={"keep-all": held, "ledger": held})
    put(store, "fa3", RUNNING, checks={"keep-all": held | {"holds": False, "figures": {"alone": 0.1}}})
    put(store, "timings-8b", PASSED, timings=[ROW, {"tokens": 65536, "reason": "needs more"}], checks={"decode": held})
    put(store, "fa3-e4m3", REFUSED, reason="quantised KV cache")
    lines = [line.split() for line in table(chosen, store, {"tp2": "needs 2 GPUs"}).split("\n")]

    def line(*begin):
        return next(words for words in lines if words[: len(begin)] == list(begin))

    assert line("flashinfer")[7:] == ["passed", "ok", "-", "-", "-", "-", "ok", "-", "40"]
    assert line("fa3")[6:10] == ["not", "run", "FAIL", "-"]
    assert line("fa3-e4m3")[-3:] == ["quantised", "KV", "cache"]
    assert line("8192", "full") == ["8192", "full", "0.500", "1.00", "1", "50.0", "1.00", "8192", "0", "0"]
    assert line("8192", "spec_kv") == ["8192", "spec_kv", "0.600", "1.20", "1", "100.0", "2.00", "1025", "0", "0"]
    assert line("8192", "renewal")[-3:] == ["1025", "10", "2"]
    assert line("65536") == ["65536", "not", "measured:", "needs", "more"]
    assert line("3", "of", "6")[-6:] == ["2", "passed,", "1", "refused,", "0", "failed"]
    assert line("FAIL") == ["FAIL", "fa3:", "keep-all", '{"alone":', "0.1}"]
    assert line("not", "run:") == ["not", "run:", "tp2:", "needs", "2", "GPUs"]
    assert line("not", "run", "yet:")[3:5] == ["fa3,", "triton"]


def test_the_table_of_nothing(tmp_path):
    printed = table(EVERY, Store(tmp_path, MACHINE), {})
    assert f"0 of {len(EVERY)} configurations have run" in printed
    assert all(name in printed for name in NAMES)


def test_a_file_that_is_no_result_counts_as_none(tmp_path):
    store = Store(tmp_path, MACHINE)
    store.path("fa3").write_text("{")
    assert store.read("fa3") is None
    assert not is_failed(store.read("fa3"))
    assert store.fail("fa3", "why")["status"] == FAILED
    assert is_failed(store.read("fa3"))
    assert os.listdir(tmp_path) == ["fa3.json"]


@pytest.mark.parametrize(
    ("name", "reason", "full_is_served", "status"),
    [
        ("fa3-e4m3", "quantised KV cache", True, REFUSED),
        ("fa3-e4m3", "quantised KV cache", False, FAILED),
        ("fa3", "quantised KV cache", True, FAILED),
        ("fa3-e4m3", "the self-check failed: an answer differs", True, FAILED),
    ],
)
def test_only_an_expected_refusal_is_a_result(tmp_path, name, reason, full_is_served, status):
    report = Report(tmp_path / "x.json", {"checks": {}})
    _refused(next(each for each in EVERY if each.name == name), reason, full_is_served, report)
    written = json.loads((tmp_path / "x.json").read_text())
    assert written["status"] == status
    assert reason in written["reason"]
