"""What each hook does around its SGLang function, and that a missing hook is found."""

from __future__ import annotations

import functools
import sys
from collections import defaultdict
from collections.abc import Iterator
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from presift.core.kv_plan import KvPlan  # noqa: E402 - the plugin needs torch
from presift.core.masks import KvMask  # noqa: E402
from presift.core.policies import KvSelection, SpecKv  # noqa: E402
from presift.models.torchvision_ops import declare_missing  # noqa: E402
from presift.target import sglang_plugin  # noqa: E402
from presift.target.sglang_plugin import hooks  # noqa: E402
from presift.target.sglang_plugin.hooks import Plugin, missing_hooks  # noqa: E402
from presift.target.sglang_plugin.ranks import Ranks  # noqa: E402
from presift.target.sglang_plugin.sglang_names import TESTED, installed  # noqa: E402
from presift.target.sglang_plugin.states import DecodeState, PassthroughState, Report, ScoringState  # noqa: E402

from .fakes import KEPT, PROMPT_TOKENS, Request, Scheduler, caller, compressed, groups_of, on_ranks  # noqa: E402

# The checks at start.
CHECKS = ("unsupported_sglang", "missing_hooks", "missing_names", "unsupported_scheduler")
DROPPING = KvPlan(SpecKv(capacity=KEPT, window=3), keep_full_prefix=False)


@pytest.fixture
def sglang() -> None:
    if find_spec("sglang") is None:
        pytest.skip("needs SGLang")
    declare_missing()


@pytest.fixture
def registry(sglang: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """SGLang's own, empty."""
    from sglang.srt.plugins.hook_registry import HookRegistry

    monkeypatch.setattr(HookRegistry, "_hooks", defaultdict(list))
    monkeypatch.setattr(HookRegistry, "_patched", set())
    yield HookRegistry


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module with two functions to hook."""
    module = ModuleType("presift_planted")
    module.kept = lambda: "kept"  # type: ignore[attr-defined]
    module.other = lambda: "other"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


class Owner:
    """Hooks are bound methods, made anew each time that they are asked for."""

    def hook(self, original: Any) -> str:
        return f"hooked {original()}"

    def hooks(self, *targets: str) -> dict[str, Any]:
        return {target: self.hook for target in targets}


OWNER = Owner()


def register(registry: Any, *targets: str) -> None:
    from sglang.srt.plugins.hook_registry import HookType

    for target, hook in OWNER.hooks(*targets).items():
        registry.register(target, hook, HookType.AROUND)


KEPT_ONE, OTHER = "presift_planted.kept", "presift_planted.other"


def test_hooks_in_place(registry: Any, planted: Any) -> None:
    register(registry, KEPT_ONE, OTHER)
    registry.apply_hooks()
    assert missing_hooks(OWNER.hooks(KEPT_ONE, OTHER)) is None
    assert planted.kept() == "hooked kept"


def test_a_renamed_target_is_named(registry: Any, planted: Any) -> None:
    register(registry, KEPT_ONE, "presift_planted.renamed")
    registry.apply_hooks()
    assert (
        missing_hooks(OWNER.hooks(KEPT_ONE, "presift_planted.renamed"))
        == "SGLang functions not hooked: presift_planted.renamed"
    )


def test_a_moved_module_is_named(registry: Any, planted: Any) -> None:
    register(registry, "presift_moved.kept", OTHER)
    registry.apply_hooks()
    assert missing_hooks(OWNER.hooks("presift_moved.kept", OTHER)) == "SGLang functions not hooked: presift_moved.kept"


def test_hooks_that_were_registered_too_late_are_named(registry: Any, planted: Any) -> None:
    register(registry, KEPT_ONE, OTHER)
    assert missing_hooks(OWNER.hooks(KEPT_ONE, OTHER)) == f"SGLang functions not hooked: {KEPT_ONE}, {OTHER}"


def test_a_removed_hook_is_named(registry: Any, planted: Any) -> None:
    register(registry, KEPT_ONE, OTHER)
    registry.apply_hooks()
    planted.other = lambda: "other"
    assert missing_hooks(OWNER.hooks(KEPT_ONE, OTHER)) == f"SGLang functions not hooked: {OTHER}"


def foreign(original: Any) -> Any:
    """Another's wrapper around a function: it has `__wrapped__`, and does not call our hook."""

    @functools.wraps(original)
    def wrapper() -> str:
        return f"foreign {original()}"

    return wrapper


def test_a_foreign_wrapper_is_not_our_hook(registry: Any, planted: Any) -> None:
    """It replaced the entry of the plugin, and SGLang believes that the plugin's is still there."""
    bare = planted.other
    register(registry, KEPT_ONE, OTHER)
    registry.apply_hooks()
    planted.other = foreign(bare)
    assert OTHER in registry._patched and planted.other.__wrapped__ is bare
    assert missing_hooks(OWNER.hooks(KEPT_ONE, OTHER)) == f"SGLang functions not hooked: {OTHER}"


def test_our_hook_below_a_foreign_wrapper_is_in_place(registry: Any, planted: Any) -> None:
    register(registry, KEPT_ONE, OTHER)
    registry.apply_hooks()
    planted.other = foreign(planted.other)
    assert planted.other() == "foreign hooked other"
    assert missing_hooks(OWNER.hooks(KEPT_ONE, OTHER)) is None


def test_the_hook_of_another_owner_is_not_ours(registry: Any, planted: Any) -> None:
    register(registry, KEPT_ONE)
    registry.apply_hooks()
    assert missing_hooks(Owner().hooks(KEPT_ONE)) == f"SGLang functions not hooked: {KEPT_ONE}"


@pytest.mark.parametrize("kind", [classmethod, staticmethod, None])
def test_methods_of_every_kind_are_found(registry: Any, planted: Any, kind: Any) -> None:
    def method(*_: Any) -> str:
        return "method"

    planted.Holder = type("Holder", (), {"method": kind(method) if kind else method})
    target = "presift_planted.Holder.method"
    assert missing_hooks(OWNER.hooks(target)) == f"SGLang functions not hooked: {target}"
    register(registry, target)
    registry.apply_hooks()
    assert missing_hooks(OWNER.hooks(target)) is None


def test_a_closure_that_is_not_filled_yet_is_no_hook_and_no_error(planted: Any) -> None:
    def make() -> Any:
        def unfilled() -> Any:
            return later

        return unfilled
        later = 1

    planted.kept = make()
    assert missing_hooks(OWNER.hooks(KEPT_ONE)) == f"SGLang functions not hooked: {KEPT_ONE}"


def test_switched_on_all_hooks_are_registered_around(registry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang.srt.plugins.hook_registry import HookType

    for switch, registered in (("0", set()), ("1", set(Plugin(installed()).hooks()))):
        monkeypatch.setenv(sglang_plugin.SWITCH, switch)
        sglang_plugin.activate()
        assert set(registry._hooks) == registered
    assert {kind for kinds in registry._hooks.values() for kind, *_ in kinds} == {HookType.AROUND}


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Plugin:
    """One that serves, in a fake scheduler."""
    for check in CHECKS:
        monkeypatch.setattr(hooks, check, lambda *_: None)
    plugin = Plugin(TESTED[-1])
    assert plugin.unsupported
    plugin.around_scheduler_init(lambda scheduler: None, Scheduler())
    assert plugin.unsupported is None
    assert plugin.check is not None
    # As after the check has passed.
    plugin.check = None
    return plugin


def scheduler_of(plugin: Plugin) -> Scheduler:
    assert plugin.builder is not None
    scheduler: Scheduler = plugin.builder._scheduler
    return scheduler


@pytest.mark.parametrize("check", CHECKS)
def test_each_check_at_start_may_refuse(monkeypatch: pytest.MonkeyPatch, check: str) -> None:
    for each in CHECKS:
        monkeypatch.setattr(hooks, each, lambda *_, each=each: each if each == check else None)
    plugin, made = Plugin(TESTED[-1]), []
    plugin.around_scheduler_init(lambda *args, **kwargs: made.append((args, kwargs)), Scheduler(), 1, x=2)
    assert (plugin.unsupported, plugin.check) == (check, None)
    assert made[0][0][1:] == (1,) and made[0][1] == {"x": 2}


def test_what_one_rank_refuses_is_refused_by_all(monkeypatch: pytest.MonkeyPatch) -> None:
    for check in CHECKS:
        monkeypatch.setattr(hooks, check, lambda *_: None)
    monkeypatch.setattr(hooks, "unsupported_scheduler", lambda scheduler: scheduler.refuses)
    groups = groups_of(2)

    def start(rank: int, _: Ranks) -> Plugin:
        scheduler = Scheduler(tp_group=groups[rank])
        scheduler.refuses = "LoRA" if rank else None  # type: ignore[attr-defined]
        plugin = Plugin(TESTED[-1])
        plugin.around_scheduler_init(lambda scheduler: None, scheduler)
        return plugin

    assert [(plugin.unsupported, plugin.check) for plugin in on_ranks(start)] == [("LoRA", None)] * 2


@pytest.mark.parametrize("agree", [True, False])
def test_the_internal_state_says_whether_the_ranks_agree(monkeypatch: pytest.MonkeyPatch, agree: bool) -> None:
    for check in CHECKS:
        monkeypatch.setattr(hooks, check, lambda *_: "why")
    groups = groups_of(2)

    def ask(rank: int, _: Ranks) -> Any:
        plugin = Plugin(TESTED[-1])
        pool_tokens = 1000 if agree else 1000 + rank
        plugin.around_scheduler_init(lambda _: None, Scheduler(tp_group=groups[rank], max_total_num_tokens=pool_tokens))
        answer = plugin.around_get_internal_state(lambda *_: SimpleNamespace(internal_state={}), None, None)
        return answer.internal_state["presift"]["ranks_agree"]

    assert on_ranks(ask) == [agree] * 2


def test_the_internal_state_has_counts_once_there_is_a_builder(plugin: Plugin) -> None:
    told = [
        each.around_get_internal_state(lambda *_: SimpleNamespace(internal_state={"theirs": 1}), None, None)
        for each in (plugin, Plugin(TESTED[-1]))
    ]
    assert [answer.internal_state["theirs"] for answer in told] == [1, 1]
    counts = plugin.builder.counts()  # type: ignore[union-attr]
    assert told[0].internal_state["presift"] == {"unsupported": None, "checking": False, "ranks_agree": True} | counts
    assert told[1].internal_state["presift"] == {"unsupported": "no scheduler has started", "checking": False}


class Check(SimpleNamespace):
    """A self-check under way: what it is asked."""

    def __init__(self) -> None:
        super().__init__(is_running=True, reason="the self-check is running", calls=[])

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self.calls.append((name, *arguments))


def test_requests_with_a_plan_wait_for_the_self_check(plugin: Plugin, monkeypatch: pytest.MonkeyPatch) -> None:
    check = plugin.check = Check()  # type: ignore[assignment]
    seen: list[Any] = []
    plan, ordinary = received({"presift": "{}"}), received(None)
    for request in (plan, ordinary):
        plugin.around_handle_generate_request(lambda _, request, **__: seen.append(request), "scheduler", request, x=1)
    assert (check.calls, seen) == ([("park", plan, {"x": 1})], [ordinary])
    state = plugin.around_get_internal_state(lambda *_: SimpleNamespace(internal_state={}), None, None)
    told = state.internal_state["presift"]
    assert (told["unsupported"], told["checking"]) == ("the self-check is running", True)
    check.is_running, check.reason = False, "the self-check failed: so"
    refused: list[Any] = []
    monkeypatch.setattr(hooks.validation, "send_refusal", lambda *arguments: refused.append(arguments[2].message))
    plugin.around_handle_generate_request(lambda *_, **__: None, "scheduler", plan)
    assert len(refused) == 1 and "the self-check failed: so" in refused[0]


@pytest.mark.parametrize(("rid", "every", "prefix"), [("a", False, "a"), ("a", True, "")])
def test_the_self_check_is_told_of_steps_and_aborts(plugin: Plugin, rid: str, every: bool, prefix: str) -> None:
    check = plugin.check = Check()  # type: ignore[assignment]
    scheduler, batch = scheduler_of(plugin), SimpleNamespace(reqs=[])
    plan = SimpleNamespace(batch_to_run="a batch")
    plugin.around_get_new_batch_prefill(lambda *_: plan, scheduler, batch)
    plugin.around_abort_request(lambda *_: None, scheduler, SimpleNamespace(rid=rid, abort_all=every))
    assert check.calls == [("step",), ("abort_parked", prefix)]


def test_answers_of_the_self_check_are_not_sent(plugin: Plugin) -> None:
    own, other = Request("own"), Request("other")
    plugin.check = SimpleNamespace(  # type: ignore[assignment]
        without_own=lambda requests: [each for each in requests if each is not own]
    )
    sent: list[Any] = []
    plugin.around_stream_output(lambda _, requests: sent.extend(requests), "streamer", [own, other])
    assert sent == [other]


def received(parameters: Any) -> Any:
    return SimpleNamespace(sampling_params=SimpleNamespace(custom_params=parameters))


@pytest.mark.parametrize("parameters", [None, {}, {"theirs": 1}, "presift"])
def test_ordinary_requests_pass_unchanged(plugin: Plugin, parameters: Any) -> None:
    plugin.unsupported, seen, request = "LoRA", [], received(parameters)
    plugin.around_handle_generate_request(
        lambda *args, **kwargs: seen.append((args, kwargs)), "scheduler", request, x=1
    )
    assert seen == [(("scheduler", request), {"x": 1})]


@pytest.mark.parametrize("error", [None, ValueError("x")])
def test_requests_with_a_plan_are_admitted_or_refused(
    plugin: Plugin, monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    calls: list[Any] = []

    def admit(*arguments: Any) -> None:
        calls.append(("admit", *arguments))
        if error:
            raise error

    monkeypatch.setattr(hooks.validation, "rewrite_request", admit)
    monkeypatch.setattr(hooks.validation, "send_refusal", lambda *arguments: calls.append(("refuse", arguments[1])))
    request = received({"presift": "{}"})
    plugin.around_handle_generate_request(
        lambda *arguments: calls.append(("original", arguments[1])), "scheduler", request
    )
    then = ("refuse", request) if error else ("original", request)
    assert calls == [("admit", "scheduler", request, None), then]


def scores(first_row: int = 16) -> Any:
    restarts: list[int] = []
    return SimpleNamespace(first_row=first_row, reset=lambda: restarts.append(1), restarts=restarts, is_complete=True)


@pytest.mark.parametrize(
    ("state", "longest"),
    [
        (None, 21),
        (compressed(), 21),
        (PassthroughState(Report(1, 1, 0)), 21),
        (ScoringState(compressed(), scores(16)), 16),
        (ScoringState(compressed(), scores(30)), 21),
        (ScoringState(compressed(), None), PROMPT_TOKENS - 1),
    ],
)
def test_scoring_rows_never_come_from_the_cache(plugin: Plugin, state: Any, longest: int) -> None:
    assert plugin.around_compute_max_prefix_len(lambda request, length: length - 1, Request("a", state), 22) == longest


def broken(*_: Any, **__: Any) -> Any:
    raise ValueError("a defect")


class Adder:
    running_batch: Any = SimpleNamespace(reqs=[])

    def __init__(self, admits: bool = True) -> None:
        self.can_run_list: list[Any] = []
        self.admits, self.seen = admits, []  # type: ignore[var-annotated]

    def ask(self, adder: Any, request: Any, *args: Any, **kwargs: Any) -> str:
        assert adder is self
        self.seen.append(getattr(request, "new_tokens", None))
        if self.admits:
            self.can_run_list.append(request)
        return "asked"


class Admitted(Request):
    """A request with parameters that the admission may change."""

    parameters: Any = None

    @property
    def sampling_params(self) -> Any:
        if self.parameters is None:
            self.parameters = SimpleNamespace(custom_params={"presift": self.state}, max_new_tokens=0)
        return self.parameters

    @property
    def new_tokens(self) -> int:
        return int(self.sampling_params.max_new_tokens)


def test_a_request_without_its_entry_is_skipped(plugin: Plugin, sglang: None) -> None:
    from sglang.srt.managers.schedule_policy import AddReqResult

    adder, request = Adder(), Admitted("a", compressed(), prefix_indices=[0] * (KEPT - 1))
    assert plugin.around_add_one_req(adder.ask, adder, request) is AddReqResult.CONTINUE
    assert adder.seen == []
    assert plugin.builder is not None and plugin.builder.counts()["missing"] == 1


@pytest.mark.parametrize("admits", [True, False])
@pytest.mark.parametrize("keep", [True, False])
def test_an_admitted_request_releases_its_pin(plugin: Plugin, sglang: None, admits: bool, keep: bool) -> None:
    plan = compressed().plan if keep else DROPPING
    adder, request = Adder(admits), Admitted("a", compressed(plan=plan), prefix_indices=[0] * KEPT)
    assert plugin.builder is not None
    plugin.builder.pins.pin("a", object(), KEPT)
    assert plugin.around_add_one_req(adder.ask, adder, request) == "asked"
    assert plugin.builder.counts()["leases"] == (0 if admits else 1)
    assert (request.state.report is not None) is admits
    assert request.skip_radix_cache_insert is (admits and not keep)


@pytest.mark.parametrize("begins", [True, False])
def test_the_prefix_is_matched_again_behind_accepted_tokens(plugin: Plugin, sglang: None, begins: bool) -> None:
    assert plugin.builder is not None
    adder, request = Adder(), Admitted("a", compressed(), prefix_indices=[0] * KEPT)
    matched: list[Any] = []
    request.init_next_round_input = matched.append  # type: ignore[attr-defined]
    plugin.builder.begin_answer = lambda *_: begins  # type: ignore[method-assign]
    adder.tree_cache = "tree"  # type: ignore[attr-defined]
    assert plugin.around_add_one_req(adder.ask, adder, request) == "asked"
    assert matched == ["tree"] * begins


def test_a_request_whose_answer_cannot_begin_is_aborted_and_admitted_again(
    plugin: Plugin, sglang: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sglang.srt.managers.schedule_policy import AddReqResult

    from presift.target.sglang_plugin import entry_builder

    adder, request = Adder(), Admitted("a", compressed(), prefix_indices=[0] * KEPT)
    scheduler, builder = scheduler_of(plugin), plugin.builder
    assert builder is not None
    builder._built["entry"] = entry_builder.BuiltEntry(0.5, (50,))
    monkeypatch.setattr(entry_builder, "accept", broken)
    scheduler.waiting_queue.append(request)
    assert plugin.around_add_one_req(adder.ask, adder, request) is AddReqResult.CONTINUE
    assert adder.can_run_list == []
    # SGLang looks at its queue again, where the request is, and admits it.
    assert builder.start_missing()
    assert scheduler.waiting_queue == [request]
    assert plugin.around_add_one_req(adder.ask, adder, request) == "asked"
    assert request.abort == ("presift: beginning an answer failed: ValueError", 500, "presift")


@pytest.mark.parametrize("named", [True, False])
def test_the_logits_of_a_lookahead_are_seen(plugin: Plugin, named: bool) -> None:
    seen: list[Any] = []
    plugin._pass._predicting = [object()]  # type: ignore[list-item]
    plugin._pass.on_logits = lambda *given: seen.append(given)  # type: ignore[method-assign]
    names = ("input_ids", "hidden_states", "lm_head", "logits_metadata")
    args, kwargs = ((), dict(zip(names, "abcd", strict=True))) if named else ("abcd", {})
    assert plugin.around_logits_forward(lambda *_, **__: "logits", "processor", *args, **kwargs) == "logits"
    assert seen == [("processor", "b", "c", "d")]
    plugin._pass._predicting = []
    plugin.around_logits_forward(lambda *_, **__: "logits", "processor", *args, **kwargs)
    assert len(seen) == 1


@pytest.mark.parametrize("admits", [True, False])
def test_a_scoring_request_is_admitted_with_room_for_its_entry_and_a_reset_selector(
    plugin: Plugin, sglang: None, monkeypatch: pytest.MonkeyPatch, admits: bool
) -> None:
    assert plugin.builder is not None
    counted: list[Any] = []
    monkeypatch.setattr(plugin.builder, "on_scoring_admitted", counted.append)
    adder, request = Adder(admits), Admitted("a", ScoringState(compressed(), scores()))
    assert plugin.around_add_one_req(adder.ask, adder, request) == "asked"
    assert adder.seen == [KEPT + 1]
    assert request.new_tokens == 0
    assert len(request.state.selector.restarts) == admits
    assert counted == [request.state] * admits


def test_a_build_without_room_lets_others_pass(plugin: Plugin, sglang: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang.srt.managers.schedule_policy import AddReqResult

    monkeypatch.setattr(plugin.builder, "has_room_for", lambda state: False)
    adder, request = Adder(), Admitted("a", ScoringState(compressed(), scores()))
    assert plugin.around_add_one_req(adder.ask, adder, request) is AddReqResult.CONTINUE
    assert adder.seen == []


def test_aborted_and_ordinary_requests_are_admitted_unchanged(plugin: Plugin, sglang: None) -> None:
    leaving = Admitted("a", compressed())
    leaving.to_finish = object()
    requests = [leaving, Admitted("b", PassthroughState(Report(1, 1, 0))), Admitted("c", None)]
    adder = Adder()
    for request in requests:
        assert plugin.around_add_one_req(adder.ask, adder, request) == "asked"
    assert adder.can_run_list == requests
    assert plugin.builder is not None and plugin.builder.counts()["missing"] == 0


@pytest.mark.parametrize("runs_anything", [True, False])
@pytest.mark.parametrize("is_missing", [True, False])
def test_an_idle_scheduler_schedules_a_new_scoring_request_at_once(
    plugin: Plugin, monkeypatch: pytest.MonkeyPatch, runs_anything: bool, is_missing: bool
) -> None:
    from presift.target.sglang_plugin import entry_builder

    monkeypatch.setattr(entry_builder, "scoring_request", lambda *_: Request("s", ScoringState(compressed(), None)))
    request, seen, scheduler = caller("a"), [], scheduler_of(plugin)
    scheduler.waiting_queue.append(request)
    changed = running_batch()

    def original(_: Any, running: Any) -> Any:
        seen.append(running)
        if is_missing and len(seen) == 1:
            plugin.builder.add_missing(request)  # type: ignore[union-attr]
        return SimpleNamespace(batch_to_run="batch" if runs_anything else None, running_batch=changed)

    plugin.around_get_new_batch_prefill(original, scheduler, RUNNING)
    assert seen == ([RUNNING, changed] if is_missing and not runs_anything else [RUNNING])


def running_batch(runs: bool = False) -> Any:
    return SimpleNamespace(is_empty=lambda: not runs, batch_is_full=True, reqs=[])


RUNNING = running_batch()


STUCK: dict[str, Any] = {"scheduled": False, "runs": False, "chunked": False, "waits": True, "pinned": True}


@pytest.mark.parametrize("name", [None, *STUCK])
def test_pins_are_repinned_if_nothing_can_be_scheduled(plugin: Plugin, name: str | None) -> None:
    """SGLang assumes that a single request always fits. If any condition differs, pins are kept."""
    case = STUCK if name is None else STUCK | {name: not STUCK[name]}
    scheduler, seen = scheduler_of(plugin), []
    pinned, other = caller("a"), Request("x")
    assert plugin.builder is not None
    if case["pinned"]:
        plugin.builder.pins.pin("a", object(), KEPT)
    scheduler.waiting_queue[:] = [pinned, other]
    scheduler.chunked_req = other if case["chunked"] else None
    running = running_batch(case["runs"])

    def original(_: Any, asked: Any) -> Any:
        if not case["waits"]:
            scheduler.waiting_queue.clear()
        seen.append((asked, len(scheduler.tree_cache.held), running.batch_is_full))
        return SimpleNamespace(
            batch_to_run="batch" if case["scheduled"] or len(seen) == 2 else None, running_batch=running
        )

    plan = plugin.around_get_new_batch_prefill(original, scheduler, RUNNING)
    held = int(case["pinned"])
    assert seen[0] == (RUNNING, held, True)
    if name is None:
        assert seen[1:] == [(running, 0, False)]
        assert plan.batch_to_run == "batch"
        assert plugin.builder.counts()["leases"] == 0
    else:
        assert seen[1:] == []
        assert (plugin.builder.counts()["leases"], running.batch_is_full) == (held, True)


@pytest.mark.parametrize("pinned", [True, False])
@pytest.mark.parametrize("has_room", [True, False])
def test_a_running_batch_without_room_takes_that_of_the_pins(plugin: Plugin, pinned: bool, has_room: bool) -> None:
    """A running request takes precedence over pins of requests that are not admitted yet."""
    assert plugin.builder is not None
    if pinned:
        plugin.builder.pins.pin("a", object(), KEPT)
    held, seen = scheduler_of(plugin).tree_cache.held, []

    def original(*args: Any, **kwargs: Any) -> bool:
        seen.append((args, kwargs, len(held)))
        return has_room or (pinned and not held)

    answer = plugin.around_check_decode_mem(original, "batch", [0, 1], x=2)
    calls = [(("batch", [0, 1]), {"x": 2}, int(pinned)), (("batch", [0, 1]), {"x": 2}, 0)]
    again = pinned and not has_room
    assert answer is (has_room or pinned)
    assert seen == (calls if again else calls[:1])
    assert plugin.builder.counts()["leases"] == int(pinned and has_room)


@pytest.mark.parametrize("fails", [True, False])
def test_the_next_chunk_of_a_scoring_request_is_counted_with_its_entry(plugin: Plugin, fails: bool) -> None:
    seen: list[int] = []

    def original(adder: str, request: Any) -> str:
        seen.append(request.new_tokens)
        if fails:
            raise RuntimeError("planted")
        return "chunk"

    request = Admitted("s", ScoringState(compressed(), scores()))
    if fails:
        with pytest.raises(RuntimeError, match="planted"):
            plugin.around_add_chunked_req(original, "adder", request)
    else:
        assert plugin.around_add_chunked_req(original, "adder", request) == "chunk"
    assert (seen, request.new_tokens) == ([KEPT + 1], 0)
    assert request.state.selector.restarts == []


@pytest.mark.parametrize(
    "state", [None, compressed(), PassthroughState(Report(1, 1, 0))], ids=["none", "entry", "untouched"]
)
def test_the_next_chunk_of_other_requests_is_counted_unchanged(plugin: Plugin, state: Any) -> None:
    request = Admitted("a", state)
    assert plugin.around_add_chunked_req(lambda _, asked: (asked, asked.new_tokens), "adder", request) == (request, 0)


@pytest.mark.parametrize("every", [True, False])
def test_an_abort_requeues_waiting_callers_and_releases_pins(
    plugin: Plugin, monkeypatch: pytest.MonkeyPatch, every: bool
) -> None:
    from presift.target.sglang_plugin import entry_builder

    monkeypatch.setattr(entry_builder, "scoring_request", lambda *_: Request("s", ScoringState(compressed(), None)))
    request, scheduler = caller("a1"), scheduler_of(plugin)
    assert plugin.builder is not None
    scheduler.waiting_queue.append(request)
    plugin.builder.add_missing(request)
    plugin.builder.start_missing()
    plugin.builder.pins.pin("a2", object(), 1)
    plugin.builder.pins.pin("b", object(), 1)
    seen: list[Any] = []

    def original(_: Any, received: Any) -> None:
        seen.append((list(scheduler.waiting_queue), len(scheduler.tree_cache.held)))

    plugin.around_abort_request(original, scheduler, SimpleNamespace(rid="" if every else "a", abort_all=every))
    assert seen == [([request], 2)]
    assert plugin.builder.counts()["leases"] == (0 if every else 1)
    assert plugin.builder.counts()["runs"] == 0


class Read(Request):
    """A request in a prefill's result."""

    is_retracted = False
    inflight_middle_chunks = 0
    is_finished = False

    def finished(self) -> bool:
        return self.is_finished


@pytest.mark.parametrize(
    ("change", "finishes"),
    [
        ({}, True),
        ({"inflight_middle_chunks": 1}, False),
        ({"is_finished": True}, False),
        ({"to_finish": "abort"}, False),
        ({"is_retracted": True}, False),
        ({"finished": True}, False),
        ({"state": compressed()}, False),
    ],
    ids=str,
)
def test_scoring_finishes_after_the_last_chunk(
    plugin: Plugin, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], finishes: bool
) -> None:
    request, order = Read("s", ScoringState(compressed(), None)), []
    for name, value in change.items():
        if name == "finished":
            request.state.is_finished = True
        else:
            setattr(request, name, value)
    monkeypatch.setattr(plugin.builder, "finish_scoring", lambda *_: order.append("finished"))
    copied = SimpleNamespace(synchronize=lambda: order.append("copied"))
    result, batch = SimpleNamespace(copy_done=copied), SimpleNamespace(reqs=[Read("x"), request])
    plugin.around_process_batch_result_prefill(lambda *_: order.append("processed"), "processor", batch, result)
    assert order == (["copied", "finished", "processed"] if finishes else ["processed"])


def streamed(plugin: Plugin, *requests: Any) -> list[Any]:
    seen: list[Any] = []
    plugin.around_stream_output(lambda streamer, requests, *_: seen.extend(requests), "streamer", list(requests))
    return seen


def answering(state: Any, cached_tokens: int = 0) -> Any:
    request: Any = Request("a", state, cached_tokens=cached_tokens)
    request.customized_info = None
    request.output_ids_through_stop = [7]
    request.finished = lambda: False
    return request


@pytest.mark.parametrize("state", [compressed(), PassthroughState(Report(1, 1, 0))])
def test_the_report_comes_again_with_the_last_token(plugin: Plugin, state: Any) -> None:
    request = answering(state)
    state.report = Report(1, 1, 0, kv_mask={"shape": [1]})
    request.finished = lambda: generated == 4
    for generated in (1, 3, 4):
        request.output_ids_through_stop = [7] * generated
        streamed(plugin, request)
        request.state.report.renewals = generated
        values = request.customized_info["presift"]
        # SGLang pairs values and tokens by their place.
        assert len(values) == generated
    assert (values[0]["renewals"], values[1:3], values[3]["renewals"]) == (0, [None, None], 3)
    # It is large.
    assert (values[0]["kv_mask"], values[3]["kv_mask"]) == ({"shape": [1]}, None)


def test_an_answer_of_one_token_reports_everything(plugin: Plugin) -> None:
    request = answering(compressed())
    request.state.report, request.finished = Report(1, 1, 0, kv_mask={"shape": [1]}), lambda: True
    streamed(plugin, request)
    assert request.customized_info["presift"] == [request.state.report.values()]


class Renewals:
    """Counts what the hooks ask of it."""

    def __init__(self, has_prefix: bool = True, starts: bool = False) -> None:
        self.prefix, self.starts = has_prefix, starts
        self.refused: list[Any] = []
        self.dropped = 0

    def has_prefix(self, request: Any, state: Any) -> bool:
        return self.prefix

    def needs_row(self, adder: Any, request: Any) -> bool:
        return self.prefix

    def refuse(self, request: Any) -> None:
        self.refused.append(request)

    def step(self, batch: Any, queued: Any) -> bool:
        return self.starts

    def drop_refused(self) -> None:
        self.dropped += 1


@pytest.mark.parametrize(
    ("has_prefix", "admits", "answer"),
    [(True, True, "NO_TOKEN"), (True, False, "NO_TOKEN"), (True, False, "OTHER"), (False, True, "CONTINUE")],
)
def test_a_renewal_that_cannot_be_admitted_blocks_nobody(
    plugin: Plugin, sglang: None, has_prefix: bool, admits: bool, answer: str
) -> None:
    from sglang.srt.managers.schedule_policy import AddReqResult

    is_refused = not has_prefix or (not admits and answer == "NO_TOKEN")
    assert plugin.builder is not None
    plugin.builder.renewals = asked = Renewals(has_prefix)  # type: ignore[assignment]
    adder, request = Adder(admits), Admitted("s", ScoringState(compressed(), None, is_renewal=True))
    verdict = AddReqResult[answer]

    def original(adder: Any, request: Any) -> Any:
        adder.ask(adder, request)
        return verdict

    result = plugin.around_add_one_req(original, adder, request)
    assert result is (AddReqResult.CONTINUE if is_refused else verdict)
    assert asked.refused == ([request] if is_refused else [])
    assert len(adder.seen) == int(has_prefix)


@pytest.mark.parametrize("is_kept", [True, False])
@pytest.mark.parametrize("state", [None, compressed(), PassthroughState(Report(1, 1, 0))])
def test_a_request_does_not_take_the_place_that_renewals_need(
    plugin: Plugin, sglang: None, state: Any, is_kept: bool
) -> None:
    from sglang.srt.managers.schedule_policy import AddReqResult

    assert plugin.builder is not None
    plugin.builder.renewals = Renewals(is_kept)  # type: ignore[assignment]
    adder, request = Adder(), Admitted("a", state)
    request.prefix_indices = [0] * KEPT
    assert plugin.around_add_one_req(adder.ask, adder, request) == (AddReqResult.OTHER if is_kept else "asked")


@pytest.mark.parametrize("starts", [True, False])
def test_sglang_looks_at_its_queue_when_a_renewal_is_due(plugin: Plugin, starts: bool) -> None:
    assert plugin.builder is not None
    plugin.builder.renewals = asked = Renewals(starts=starts)  # type: ignore[assignment]
    batch, seen = running_batch(runs=True), []

    def original(_: Any, asked_batch: Any) -> Any:
        seen.append((asked_batch.batch_is_full, asked.dropped))
        return SimpleNamespace(batch_to_run="batch", running_batch=asked_batch)

    plugin.around_get_new_batch_prefill(original, scheduler_of(plugin), batch)
    assert (seen, asked.dropped) == ([(not starts, 0)], 1)


def test_scoring_requests_stream_no_output(plugin: Plugin) -> None:
    caller, scoring, ordinary = answering(compressed()), answering(ScoringState(compressed(), None)), answering(None)
    assert streamed(plugin, caller, scoring, ordinary) == [caller, ordinary]
    assert streamed(plugin, scoring) == []
    assert streamed(plugin, ordinary) == [ordinary]
    assert ordinary.customized_info is caller.customized_info is None


def test_a_report_is_attached_once(plugin: Plugin) -> None:
    made, untouched = answering(compressed()), answering(PassthroughState(Report(8, 8, 0)), cached_tokens=7)
    made.state.record_reuse(KEPT, 0.5)
    streamed(plugin, made, untouched)
    told = {
        "prompt_tokens": PROMPT_TOKENS,
        "kv_tokens": KEPT + 1,
        "cached_tokens": KEPT,
        "reused_entry": True,
        "score_ms": 0.0,
        "publish_ms": 0.0,
        "coverage": 0.5,
        "kv_mask": None,
        "renewals": 0,
        "renewals_skipped": 0,
        "accepted_tokens": 0,
        "kv_tokens_peak": KEPT + 1,
        "kv_tokens_mean": KEPT + 1.0,
        "coverage_min": 0.5,
    }
    assert made.customized_info == {"presift": [told]}
    assert untouched.customized_info["presift"][0]["cached_tokens"] == 7
    first = made.customized_info
    streamed(plugin, made)
    assert made.customized_info is first


@pytest.mark.parametrize(
    ("state", "is_kept"),
    [
        (None, True),
        (PassthroughState(Report(1, 1, 0)), True),
        (compressed(), True),
        (compressed(plan=DROPPING), False),
        (ScoringState(compressed(), None), True),
        (ScoringState(compressed(plan=DROPPING), None), False),
    ],
)
def test_chunks_are_not_cached_without_keep_full_prefix(plugin: Plugin, state: Any, is_kept: bool) -> None:
    calls: list[Any] = []
    tree = SimpleNamespace(advance_unpublished_req=lambda request, **kwargs: calls.append(("advanced", kwargs)))
    plugin.around_maybe_cache_unfinished_req(
        lambda *_, **kwargs: calls.append(("cached", kwargs)), Request("a", state), tree, chunked=True
    )
    assert calls == [("cached" if is_kept else "advanced", {"chunked": True})]
    if isinstance(state, DecodeState):
        # Otherwise SGLang reads the same chunk again and again, and each time in new slots.
        failed = Request("b", state)
        failed.skip_radix_cache_insert = True
        plugin.around_maybe_cache_unfinished_req(lambda *_, **__: calls.append("cached"), failed, tree)
        assert calls[1:] == [("advanced", {})]


@pytest.mark.parametrize(
    ("state", "own", "wanted", "inserted"),
    [
        (None, 0, 22, 22),
        (compressed(), 0, 22, 22),
        (ScoringState(compressed(), None), 0, 22, PROMPT_TOKENS),
        (ScoringState(compressed(), None), 0, 9, 9),
        (ScoringState(compressed(), None), 21, 22, 21),
    ],
)
def test_the_lookahead_is_not_cached(plugin: Plugin, state: Any, own: int, wanted: int, inserted: int) -> None:
    request = SimpleNamespace(
        sampling_params=SimpleNamespace(custom_params={"presift": state}), kv=SimpleNamespace(cache_protected_len=own)
    )
    seen: list[Any] = []
    plugin.around_insert_req(lambda *_, **kwargs: seen.append(kwargs), "tree", request, up_to=wanted, x=1)
    assert seen == [{"up_to": inserted, "x": 1}]


def test_a_tree_reset_drops_all_pins_without_unlocking(plugin: Plugin) -> None:
    assert plugin.builder is not None
    plugin.builder.pins.pin("a", object(), 1)
    held = scheduler_of(plugin).tree_cache.held
    before = dict(held)
    assert plugin.around_reset(lambda tree: (tree, plugin.builder.counts()["leases"]), "tree") == ("tree", 0)  # type: ignore[union-attr]
    assert held == before


def test_hooks_do_nothing_before_the_scheduler_is_made() -> None:
    """SGLang makes and empties its tree, and may make batches, before its scheduler is made."""
    plugin, seen = Plugin(TESTED[-1]), []
    waiting, scoring = Admitted("a", compressed()), Read("s", ScoringState(compressed(), None))
    plugin.around_reset(lambda tree: seen.append("reset"), "tree")
    plugin.around_get_new_batch_prefill(lambda *_: seen.append("batch"), "scheduler", "running")
    assert not plugin.around_check_decode_mem(lambda *_: False, "batch")
    plugin.around_abort_request(lambda *_: seen.append("abort"), "scheduler", SimpleNamespace(rid="a", abort_all=False))
    plugin.around_process_batch_result_prefill(
        lambda *_: seen.append("read"), "p", SimpleNamespace(reqs=[scoring]), None
    )
    if find_spec("sglang") is not None:
        declare_missing()
        plugin.around_add_one_req(lambda *_: seen.append("admission"), "adder", waiting)
    assert seen[:4] == ["reset", "batch", "abort", "read"]
    assert seen[4:] in ([], ["admission"])


@pytest.mark.parametrize("by_name", [True, False])
def test_attention_passes_on_its_queries(plugin: Plugin, monkeypatch: pytest.MonkeyPatch, by_name: bool) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(plugin._pass, "on_attention", lambda *arguments: seen.append(arguments))
    monkeypatch.setattr(plugin._pass, "_rows", ["somebody's"])
    if by_name:
        result = plugin.around_forward(lambda *_, **__: "out", "backend", q="q", k="k", v="v", layer="layer", x=1)
    else:
        result = plugin.around_forward(lambda *_, **__: "out", "backend", "q", "k", "v", "layer", "batch", x=1)
    assert (result, seen) == ("out", [("q", "layer")])


def test_attention_is_not_inspected_without_scoring_rows(plugin: Plugin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most passes are; and a backend may call it in other ways."""
    seen: list[Any] = []
    monkeypatch.setattr(plugin._pass, "on_attention", lambda *arguments: seen.append(arguments))
    assert plugin.around_forward(lambda *_, **__: "out", "backend", x=1) == "out"
    assert seen == []


def test_with_a_mask_only_the_final_token_is_computed(plugin: Plugin) -> None:
    policy = SpecKv(capacity=KEPT, window=3, selection=KvSelection.DRAFT_MASK)
    import numpy as np

    plan = KvPlan(policy, kv_mask=KvMask(np.ones((1, 1, PROMPT_TOKENS), dtype=bool)))
    request = Request("s", ScoringState(compressed(plan=plan), None))
    assert plugin.around_compute_max_prefix_len(lambda *_: 99, request, 99) == PROMPT_TOKENS - 1
