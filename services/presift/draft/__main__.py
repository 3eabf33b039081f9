"""Runs the draft service: `python -m presift.draft --model DIR --listen HOST:PORT`."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from functools import partial

from presift.core.errors import PresiftError
from presift.draft.request_metrics import gauges_of
from presift.draft.scorer import Cancel, Scorer
from presift.draft.servicer import DraftServicer
from presift.draft.settings import DraftSettings
from presift.draft.work_queue import WorkQueue
from presift.rpc.server.run import run
from presift.rpc.server.server import GrpcServer
from presift.telemetry.gauges import observed
from presift.telemetry.tracing import span
from presift.v1 import draft_pb2, draft_pb2_grpc

_SERVICE = draft_pb2.DESCRIPTOR.services_by_name["DraftService"].full_name

log = logging.getLogger(__name__)


def main() -> int:
    """Exit status: 0 after a clean drain, 1 if the service could not start."""
    settings = DraftSettings()  # type: ignore[call-arg]
    # OpenMP reads it when torch is loaded. Threads that spin while they wait take cores from the other services.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    return run("draft", settings, serve)


async def serve(settings: DraftSettings) -> bool:
    """Serve until SIGTERM or SIGINT. False if the model failed to load. Raises PresiftError if it cannot listen."""
    queue = WorkQueue(settings.max_queue)
    servicer = DraftServicer(queue, settings.max_lookahead_tokens)
    server = GrpcServer(settings.server_options(), [_SERVICE], auth_interceptors=settings.auth_interceptors())
    draft_pb2_grpc.add_DraftServiceServicer_to_server(servicer, server.grpc)
    port = await server.start()
    getting_ready = asyncio.create_task(_get_ready(settings, queue, servicer, server, port))
    try:
        with observed(*gauges_of(queue)):
            return await server.run_until_stopped()
    finally:
        getting_ready.cancel()
        queue.close()


async def _get_ready(
    settings: DraftSettings, queue: WorkQueue, servicer: DraftServicer, server: GrpcServer, port: int
) -> None:
    try:
        with span("load"):
            done = await queue.run(partial(load, settings))
    except PresiftError as error:
        log.error("%s", error)
        server.request_stop(failed=True)
    except Exception:
        log.exception("loading the model failed")
        server.request_stop(failed=True)
    else:
        servicer.use(done.result)
        await server.set_serving(True)
        host = settings.listen.rpartition(":")[0]
        print(f"presift draft ready on {host}:{port}: {done.result.info.id}, {settings.dtype}", flush=True)


def load(settings: DraftSettings, cancel: Cancel) -> Scorer:
    """A scorer that has scored its first prompt. Runs on the worker thread, because torch's settings are per thread."""
    # Imported here so that `--help` is fast, and after OpenMP's settings are made.
    import torch  # noqa: PLC0415

    from presift.draft.transformers_scorer import TransformersScorer  # noqa: PLC0415
    from presift.draft.warm_up import warm_up  # noqa: PLC0415
    from presift.models.folder import resolve  # noqa: PLC0415

    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    scorer = TransformersScorer(resolve(settings.model), settings.dtype, settings.device, settings.chunk_tokens)
    warm_up(scorer, cancel)
    return scorer


if __name__ == "__main__":
    sys.exit(main())
