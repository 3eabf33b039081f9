"""Settings of what the orchestrator calls and learns from: models, cache, tokenizers, cost estimates, quality guard."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, SecretStr


class ModelServiceSettings(BaseModel):
    """Draft and target services"""

    draft_address: Annotated[
        str,
        Field(description="HOST:PORT, a comma-separated list, or dns:///HOST:PORT with one replica per DNS record"),
    ] = "127.0.0.1:50052"
    target_address: Annotated[str, Field(description="same forms as --draft-address")] = "127.0.0.1:50053"
    target_model: Annotated[
        str,
        Field(
            description="ID or ID@REVISION of the target; replicas that run another model are not used; if unset, those"
            " of the model that most replicas run are used"
        ),
    ] = ""
    draft_timeout_s: Annotated[
        float, Field(gt=0, description="seconds to wait for the draft before the target reads the whole prompt")
    ] = 60.0
    draft_hedge_after_s: Annotated[
        float | None, Field(gt=0, description="seconds before a second draft replica is asked as well; off if unset")
    ] = None
    target_idle_s: Annotated[
        float,
        Field(
            ge=1,
            description="seconds after which an answer is ended whose target sends nothing more; counts as a failure of"
            " the target if it sends nothing to others either",
        ),
    ] = 120.0
    peer_ca: Annotated[
        Path | None,
        Field(description="PEM: CA of draft and target; enables TLS to them; reloaded when the file changes"),
    ] = None
    peer_cert: Annotated[
        Path | None, Field(description="PEM: client certificate for draft and target (mutual TLS)")
    ] = None
    peer_key: Annotated[Path | None, Field(description="PEM: unencrypted private key of peer_cert")] = None
    peer_name_override: Annotated[
        str, Field(description="name in the certificates of draft and target, if it differs from their address")
    ] = ""


class CacheSettings(BaseModel):
    """Cache of compressed prompts"""

    cache_url: Annotated[
        SecretStr,
        Field(
            description="memory://, redis://, rediss://, unix://, redis+sentinel://HOST,HOST/SERVICE or"
            " redis+cluster://HOST,HOST; Redis 6 or later, or Valkey"
        ),
    ] = SecretStr("memory://")
    cache_url_file: Annotated[
        Path | None, Field(description="file with the cache URL, for a URL that holds a password")
    ] = None
    cache_ca: Annotated[Path | None, Field(description="PEM: CA of a rediss:// cache")] = None
    cache_ttl_s: Annotated[float, Field(gt=0, description="seconds to keep a compressed prompt")] = 86_400.0
    cache_timeout_s: Annotated[
        float, Field(gt=0, description="seconds to wait for the cache before a look-up counts as a miss")
    ] = 0.05


class TokenizerSettings(BaseModel):
    """Tokenizers"""

    tokenizer: Annotated[
        str | None,
        Field(description="folder or Hugging Face id of the target's tokenizer; if unset, only token ids are accepted"),
    ] = None
    cross_vocabulary: Annotated[
        bool, Field(description="allow a draft with another vocabulary than the target; needs both tokenizers")
    ] = False
    draft_tokenizer: Annotated[
        str | None, Field(description="folder or Hugging Face id of the draft's tokenizer; for --cross-vocabulary")
    ] = None
    token_memory_mib: Annotated[
        int,
        Field(
            ge=0, description="MiB of memory for the token ids of recent prompts, so that they are not tokenized again"
        ),
    ] = 32


class EstimationSettings(BaseModel):
    """Cost estimates"""

    learn_speeds: Annotated[
        bool, Field(description="update cost estimates from observed requests; otherwise use the built-in ones")
    ] = True
    calibrate: Annotated[
        bool, Field(description="time a few synthetic prompts after the start, until the first request arrives")
    ] = True
    calibration_limit_s: Annotated[float, Field(gt=0, description="maximum seconds of calibration")] = 20.0
    prefix_memory_mib: Annotated[
        int,
        Field(
            ge=0,
            description="MiB of memory for the prefix index, which tracks the prompts that all targets and drafts have"
            " read; 1 MiB is 262,144 tokens",
        ),
    ] = 128


class QualitySettings(BaseModel):
    """Quality guard"""

    guard_share: Annotated[
        float,
        Field(ge=0, le=1, description="share of compressed requests that are also answered in full, in the background"),
    ] = 0.01
    guard_max_new_tokens: Annotated[int, Field(ge=1, le=1024, description="tokens of both answers to compare")] = 256
    guard_switches: Annotated[
        bool, Field(description="switch off routes whose answers differ too much; otherwise only measure")
    ] = True
    guard_off_below: Annotated[
        float, Field(ge=0, lt=1, description="mean agreement with the full answers below which a route is switched off")
    ] = 0.45
    guard_on_above: Annotated[
        float, Field(ge=0, lt=1, description="mean agreement above which a route is switched on again")
    ] = 0.65
    guard_least_samples: Annotated[int, Field(ge=1, description="minimum samples before a route is switched")] = 20
    guard_window: Annotated[int, Field(ge=1, description="latest samples per route and length band to average")] = 50
