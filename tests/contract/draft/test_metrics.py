"""What the draft tells of its work: spans by stage, tokens, how many wait."""

import asyncio
import threading

from presift.draft.request_metrics import gauges_of, record_response
from presift.draft.work_queue import WorkQueue
from presift.v1 import draft_pb2

from .test_service import Stack, request

STAGES = ("queue", "prefill", "lookahead", "select")


async def test_a_scored_prompt_is_recorded(telemetry):
    stack = Stack(1, 1.0)
    await stack.start()

    def told():
        stages = [telemetry.total("presift.draft.stage.duration", stage=stage) for stage in STAGES]
        return [*stages, *(telemetry.total("presift.draft.tokens", kind=kind) for kind in ("read", "lookahead"))]

    before = told()
    reply = await stack.stub.Score(request([1, 2, 3, 4, 5]))
    grown = [now - old for now, old in zip(told(), before, strict=True)]
    assert grown == [1, 1, 1, 1, 5, len(reply.lookahead_token_ids)]
    by_name = {span.name: span for span in telemetry.spans}
    assert by_name["queue"].parent.span_id == by_name["score"].context.span_id
    await stack.stop()


def test_a_stage_that_there_was_not_has_no_time(telemetry):
    name, before = "presift.draft.stage.duration", {}
    for stage in ("prefill", "lookahead"):
        before[stage] = telemetry.total(name, stage=stage)
    record_response(draft_pb2.ScoreResponse(timings=draft_pb2.ScoreTimings(prefill_ms=5.0)))
    assert telemetry.total(name, stage="prefill") == before["prefill"] + 1
    assert telemetry.total(name, stage="lookahead") == before["lookahead"]


async def test_gauges_show_who_is_served_and_who_waits():
    queue, gate = WorkQueue(5), threading.Event()

    def shown():
        return {each.name.removeprefix("presift.draft."): next(iter(each.read()))[0] for each in gauges_of(queue)}

    assert shown() == {"running": 0, "queue": 0, "queue.limit": 5}
    waiting = [asyncio.create_task(queue.run(lambda cancel: gate.wait(30))) for _ in range(3)]
    await asyncio.sleep(0.05)
    assert shown() == {"running": 1, "queue": 2, "queue.limit": 5}
    gate.set()
    await asyncio.gather(*waiting)
    assert shown() == {"running": 0, "queue": 0, "queue.limit": 5}
    queue.close()
