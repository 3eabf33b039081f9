"""Models that cannot be scored are refused by name, those that can are not."""

from types import SimpleNamespace

import pytest

from presift.core.errors import InvalidRequest
from presift.draft.supported import check_supported


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"sliding_window": 4096}, "sliding-window"),
        ({"attn_logit_softcapping": 50.0}, "soft-capped"),
        ({"kv_lora_rank": 512}, "latent"),
        ({"is_encoder_decoder": True}, "encoder-decoder"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "without full attention"),
        ({"model_type": "gpt_oss"}, "sinks"),
    ],
)
def test_unfit_models_are_refused_with_the_reason(settings, reason):
    with pytest.raises(InvalidRequest, match=reason) as refusal:
        check_supported(SimpleNamespace(**{"model_type": "new", **settings}))
    assert refusal.value.field == "model"


@pytest.mark.parametrize("settings", [{}, {"sliding_window": None, "layer_types": ["full_attention"] * 3}])
def test_plain_decoders_are_not(settings):
    check_supported(SimpleNamespace(model_type="llama", **settings))
