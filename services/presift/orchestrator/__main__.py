"""`python -m presift.orchestrator`: listen, find target and draft, serve, drain."""

from __future__ import annotations

import asyncio
import logging
import sys

from presift.cache.opening import open_lease, open_store
from presift.cache.store import CacheLimits, Operation, Outcome
from presift.core.errors import PresiftError
from presift.orchestrator.calibration import Calibration
from presift.orchestrator.compression import Compressor
from presift.orchestrator.cross_vocabulary import CrossVocabularyDraft
from presift.orchestrator.drafting import Drafter
from presift.orchestrator.economy import Economy
from presift.orchestrator.guard.answers import Answers
from presift.orchestrator.guard.guard import Guard
from presift.orchestrator.guard.switches import Switches
from presift.orchestrator.loading import load_interpreter, load_tokenizer
from presift.orchestrator.models import Models
from presift.orchestrator.pipeline import Pipeline
from presift.orchestrator.planning import Planner
from presift.orchestrator.prefilling import Prefiller
from presift.orchestrator.prefixes import BLOCK_TOKENS, Prefixes
from presift.orchestrator.remote import RemoteDraft, RemoteTarget
from presift.orchestrator.servicer import OrchestratorServicer
from presift.orchestrator.settings import OrchestratorSettings
from presift.orchestrator.terms_in_force import reloaded_on_sighup, terms_of
from presift.orchestrator.turns import Turns
from presift.rpc import telemetry
from presift.rpc.metrics import count
from presift.rpc.server import GrpcServer
from presift.v1 import orchestrator_pb2, orchestrator_pb2_grpc

log = logging.getLogger(__name__)


def main() -> int:
    """0 after a clean drain, 1 if the service could not start."""
    settings = OrchestratorSettings()
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    flush = telemetry.configure("orchestrator", settings.otlp_endpoint)
    try:
        return 0 if asyncio.run(serve(settings)) else 1
    except PresiftError as error:
        log.error("%s", error)
        return 1
    finally:
        flush()


async def serve(settings: OrchestratorSettings) -> bool:
    """Serve until SIGTERM or SIGINT; False if something failed. Raises PresiftError, VocabularyMismatch among them."""
    terms = terms_of(settings)
    limits = CacheLimits(ttl_s=settings.cache_ttl_s, timeout_s=settings.cache_timeout_s)
    store = open_store(settings.cache_url.get_secret_value(), limits, _count_cache)
    lease = open_lease(store, limits, _count_cache, lease_s=settings.draft_timeout_s)
    message_bytes = settings.max_message_mib * 2**20
    draft = RemoteDraft(settings.draft_address, message_bytes)
    target = RemoteTarget(settings.target_address, message_bytes)
    salt = settings.tenant_salt.get_secret_value()
    tokenizer = load_tokenizer(settings.tokenizer, settings.token_memory)
    interpreter = load_interpreter(settings.draft_tokenizer, tokenizer) if settings.cross_vocabulary else None
    models = Models(
        draft, target, tokenizer.fingerprint(), "" if interpreter is None else interpreter.draft_fingerprint
    )
    scorer = draft if interpreter is None else CrossVocabularyDraft(draft, interpreter)
    compressor = Compressor(scorer, store, lease, draft_timeout_s=settings.draft_timeout_s, salt=salt)
    prefiller = Prefiller(target, salt=salt) if settings.prefill_while_drafting else None
    turns = Turns(settings.turn_memory, salt)
    prefixes = Prefixes(settings.prefix_memory // BLOCK_TOKENS, salt)
    economy = Economy(prefixes, learns=settings.learn_speeds, reads_beside=prefiller is not None)
    switches = Switches(settings.thresholds())
    planner = Planner(
        tokenizer,
        models,
        compressor,
        terms,
        prefiller=prefiller,
        turns=turns,
        economy=economy,
        switches=switches,
    )
    answers = Answers(target, Drafter(models, compressor), compressor, economy, defaults=settings.defaults(), salt=salt)
    guard = Guard(answers.compare, settings.sampler(), switches)
    calibration = Calibration(draft, target, models, settings.defaults(), economy, limit_s=settings.calibration_limit_s)
    if not (settings.calibrate and settings.learn_speeds):
        calibration.stop()
    pipeline = Pipeline(planner, tokenizer, models, target, salt=salt, guard=guard, calibration=calibration)
    server = GrpcServer(
        settings.server_options(), [orchestrator_pb2.DESCRIPTOR.services_by_name["OrchestratorService"].full_name]
    )
    servicer = OrchestratorServicer(pipeline, models, terms)
    orchestrator_pb2_grpc.add_OrchestratorServiceServicer_to_server(servicer, server.grpc)
    port = await server.start()
    becoming_ready = asyncio.create_task(_become_ready(settings, models, server, port, calibration))
    try:
        async with reloaded_on_sighup(terms):
            stopped = await server.run_until_stopped()
        if becoming_ready.done() and not becoming_ready.cancelled():
            becoming_ready.result()
        return stopped
    finally:
        becoming_ready.cancel()
        for part in (calibration, guard, models, draft, target, store):
            await part.aclose()


async def _become_ready(
    settings: OrchestratorSettings, models: Models, server: GrpcServer, port: int, calibration: Calibration
) -> None:
    try:
        target = await models.connect()
    except PresiftError:
        server.request_stop(failed=True)
        raise
    await server.set_serving(True)
    host = settings.listen.rpartition(":")[0]
    print(f"presift orchestrator ready on {host}:{port}: {target.model.id}", flush=True)
    calibration.start()


def _count_cache(operation: Operation, outcome: Outcome) -> None:
    count("presift.cache.operations", operation=operation.value, outcome=outcome.value)


if __name__ == "__main__":
    sys.exit(main())
