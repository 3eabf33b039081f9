"""Runs the draft service: `python -m presift.draft --model DIR --listen HOST:PORT`."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from functools import partial

from presift.core.errors import PresiftError
from presift.draft import head_profile
from presift.draft.head_profile import HeadProfile
from presift.draft.request_metrics import gauges_of
from presift.draft.scorer import Cancel, Scorer
from presift.draft.servicer import DraftServicer
from presift.draft.settings import DraftSettings
from presift.draft.work_queue import WorkQueue
from presift.models.folder import ModelFolder, resolve
from presift.rpc.server.run import freeze_loaded_objects, run
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
    getting_ready = asyncio.create_task(_get_ready(settings, queue, servicer, server, port), name="load the model")
    server.supervise(getting_ready)
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
    else:
        servicer.use(done.result)
        freeze_loaded_objects()
        await server.set_serving(True)
        host = settings.listen.rpartition(":")[0]
        print(f"presift draft ready on {host}:{port}: {done.result.info.id}, {settings.loaded_dtype}", flush=True)


def load(settings: DraftSettings, cancel: Cancel) -> Scorer:
    """A scorer that has scored its first prompt. Runs on the worker thread, because torch's settings are per thread."""
    # Imported here so that `--help` is fast, and after OpenMP's settings are made.
    import torch  # noqa: PLC0415

    from presift.draft.transformers_scorer import TransformersScorer  # noqa: PLC0415
    from presift.draft.warm_up import warm_up  # noqa: PLC0415

    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    folder = resolve(settings.model)
    profile = head_profile.find(settings.head_profile, folder, settings.head_profiles)
    if profile is None and settings.calibrate and settings.head_profile == "auto":
        profile = _calibrated(settings, folder, cancel)
    scorer = TransformersScorer(
        folder,
        settings.loaded_dtype,
        settings.device,
        settings.chunk_tokens,
        layers=settings.layer_count,
        profile=profile,
        prefix_cache_bytes=settings.prefix_cache_mib * 2**20,
    )
    warm_up(scorer, cancel)
    for limit in scorer.layers.limits():
        log.info("%s: %s", scorer.info.id, limit)
    return scorer


def _calibrated(settings: DraftSettings, folder: ModelFolder, cancel: Cancel) -> HeadProfile | None:
    """A new profile of the model, which is kept for the next start; None if no set of heads beats the default."""
    from presift.draft.calibration import PREFIX_CACHE_BYTES, calibrate  # noqa: PLC0415
    from presift.draft.transformers_scorer import TransformersScorer  # noqa: PLC0415

    log.info("calibrating the draft's heads; this takes minutes, once")
    scorer = TransformersScorer(
        folder, settings.loaded_dtype, settings.device, settings.chunk_tokens, prefix_cache_bytes=PREFIX_CACHE_BYTES
    )
    found = calibrate(scorer, folder, lambda done, total: None, cancel)
    if found.profile is None:
        log.info("no set of heads beats the default (recall %.3f)", found.default_recall)
        return None
    log.info("head profile written to %s", head_profile.save(found.profile, folder, settings.head_profiles))
    return found.profile


if __name__ == "__main__":
    sys.exit(main())
