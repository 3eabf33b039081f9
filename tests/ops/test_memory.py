"""The orchestrator's bounds, added up at default settings, fit the memory limits of .env and ops/k8s, with a margin."""

import inspect

import pytest
import yaml
from dotenv import dotenv_values

from presift.cache.store import CacheLimits
from presift.core.limits import MAX_KV_MASK_BYTES, MAX_PROMPT_TOKENS
from presift.orchestrator.app import EXPLAINING, READING_MASKS, TOKENIZING, Tuning
from presift.orchestrator.config.settings import OrchestratorSettings
from presift.orchestrator.domain.limits import MAX_EXPLAINED_SPANS
from presift.orchestrator.estimation.estimator import COMPRESSED_BYTES
from presift.orchestrator.estimation.prefix_index import HASHES_BYTES, PrefixIndex
from presift.orchestrator.prompt.tokenizer import PromptTokenizer
from presift.orchestrator.prompt.tokenizing_limit import AT_ONCE_BYTES, ENCODING_BYTES, MAX_TEXT_BYTES, TEXT_BYTES
from presift.orchestrator.quality.shadow_queue import QUEUE_LENGTH
from presift.orchestrator.routing.quality_gate import MAX_OWN
from presift.rpc.server.memory_guard import SHARE_OF_CONTAINER
from presift.rpc.server.server import ServerOptions

from .sources import K8S, ROOT

MIB = 2**20
# Of the process that has answered nothing: 109 MiB measured without a tokenizer; with one of 150,000 tokens and its
# copy (`ControlTokens`) it stays below this.
PROCESS_BYTES = 256 * MIB
# A call that waits in the queue, without its prompt: 37 KiB measured, over gRPC.
CALL_BYTES = 40 * 1024
# Of a span, rendered as JSON, with characters beyond UCS-2 in the text (measured, rounded up).
SPAN_BYTES = 3328
# Of a token in a sample: two lists of ids, and masks.
SAMPLE_BYTES = 12
# Of the largest KV mask, one byte for each of its bits: of the target, of the tokens read, and of the prompt.
MASK_BYTES = 3 * 8 * MAX_KV_MASK_BYTES
# What the allocator keeps beside it, because free memory is too scattered to be returned: an estimate.
FRAGMENTATION = 1 / 8


def default(name):
    return OrchestratorSettings.model_fields[name].default


def bounds():
    """What the parts may hold, in bytes, at default settings."""
    return {
        "process": PROCESS_BYTES,
        "tokens of recent prompts": default("token_memory_mib") * MIB,
        "prefix index": default("prefix_memory_mib") * MIB,
        "hashes of prompts": HASHES_BYTES,
        "compressed prompts that are known": COMPRESSED_BYTES,
        "selections of earlier turns": default("turn_memory_mib") * MIB,
        "switches of tenants": MAX_OWN * 16 * 1024,
        "cache memory://": CacheLimits().memory_bytes,
        "running and waiting requests": default("max_requests_mib") * MIB,
        "tokens of texts, short and long, while they are made": 2 * AT_ONCE_BYTES * ENCODING_BYTES,
        "their texts": (AT_ONCE_BYTES + MAX_TEXT_BYTES) * TEXT_BYTES,
        "calls": default("max_calls") * CALL_BYTES,
        "requests that are being received or answered": default("max_received_mib") * MIB,
        "answers that are not read": default("max_answers_mib") * MIB,
        "calls that only tokenize": TOKENIZING.max_bytes,
        "samples of the quality guard": (1 + QUEUE_LENGTH) * MAX_PROMPT_TOKENS * SAMPLE_BYTES,
        "an explanation": EXPLAINING.max_running * MAX_EXPLAINED_SPANS * SPAN_BYTES,
        "its KV mask": READING_MASKS.max_running * MASK_BYTES,
        "explanations that wait": EXPLAINING.max_bytes + READING_MASKS.max_bytes,
    }


def limits():
    """The memory limits of an orchestrator, in bytes: where -> limit."""
    (deployment,) = (
        each
        for each in yaml.safe_load_all((K8S / "base" / "orchestrator.yaml").read_text())
        if each["kind"] == "Deployment"
    )
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    found = {
        ".env": dotenv_values(ROOT / ".env")["ORCHESTRATOR_MEMORY"],
        "ops/k8s": container["resources"]["limits"]["memory"],
    }
    units = {"m": MIB, "g": 2**30, "Mi": MIB, "Gi": 2**30}
    return {
        where: int(text.rstrip("gmMGi")) * units[text.lstrip("0123456789")] for where, text in found.items() if text
    }


@pytest.mark.parametrize("where", [".env", "ops/k8s"])
def test_all_bounds_together_fit_the_memory_limit(where):
    """Below the share of it above which the memory guard ends requests, or a full process would end them for ever."""
    needed = (1 + FRAGMENTATION) * sum(bounds().values())
    room = SHARE_OF_CONTAINER * limits()[where]
    assert needed <= room, f"{where}: {needed / MIB:.0f} of {room / MIB:.0f} MiB: {bounds()}"


def test_the_parts_have_the_defaults_of_the_settings():
    """So that what tests and tools build by hand is bounded as the service is."""
    memory = inspect.signature(PromptTokenizer).parameters["memory_bytes"].default
    prefixes = inspect.signature(PrefixIndex).parameters["memory_bytes"].default
    queue = Tuning.__dataclass_fields__["queue"].default_factory()
    assert memory == default("token_memory_mib") * MIB and prefixes == default("prefix_memory_mib") * MIB
    assert queue.max_bytes == default("max_requests_mib") * MIB
    assert Tuning.__dataclass_fields__["max_answer_bytes"].default == default("max_answers_mib") * MIB
    assert ServerOptions.__dataclass_fields__["max_received_bytes"].default == default("max_received_mib") * MIB
    assert Tuning.__dataclass_fields__["selection_memory_bytes"].default == default("turn_memory_mib") * MIB
