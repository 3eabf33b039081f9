"""Which layers score, what the others are, and models that cannot be scored, refused by name."""

from types import SimpleNamespace

import pytest

from presift.core.errors import InvalidRequest
from presift.draft.layers import Layers, layers_of, truncate

FULL, SLIDING, CHUNKED, LINEAR = "full_attention", "sliding_attention", "chunked_attention", "linear_attention"


def config(**settings):
    values = {"model_type": "new", "num_hidden_layers": 4, "max_position_embeddings": 8192} | settings
    if "layer_types" in values:
        values["num_hidden_layers"] = len(values["layer_types"])
    return SimpleNamespace(**values)


@pytest.mark.parametrize(
    ("settings", "full"),
    [
        ({}, (0, 1, 2, 3)),
        ({"sliding_window": None, "layer_types": [FULL] * 3}, (0, 1, 2)),
        ({"sliding_window": 4096, "use_sliding_window": False}, (0, 1, 2, 3)),
        ({"sliding_window": 0}, (0, 1, 2, 3)),
        ({"sliding_window": 8192}, (0, 1, 2, 3)),
        ({"sliding_window": 4096, "layer_types": [SLIDING, FULL, SLIDING, FULL]}, (1, 3)),
        ({"sliding_window": 9000, "layer_types": [SLIDING, FULL]}, (0, 1)),
        ({"attention_chunk_size": 512, "layer_types": [CHUNKED, CHUNKED, FULL]}, (2,)),
        ({"attention_chunk_size": 8192, "layer_types": [CHUNKED, FULL]}, (0, 1)),
        ({"layer_types": ["mamba", "attention", "moe"]}, (1,)),
        ({"layer_types": ["hybrid", "hybrid"]}, (0, 1)),
    ],
)
def test_layers_that_attend_to_all_earlier_tokens_score(settings, full):
    each = config(**settings)
    assert layers_of(each, each.num_hidden_layers).full == full


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"is_encoder_decoder": True}, "with an encoder"),
        ({"use_bidirectional_attention": True}, "later tokens"),
        ({"max_position_embeddings": None}, "no maximum length"),
        ({"sliding_window": 4096}, r"new with layers 0\.\.3 sliding_attention \(4096 tokens\)"),
        ({"layer_types": ["mamba"] * 2}, r"layers 0\.\.1 mamba; it must be .* one of the loaded layers"),
        (
            {"layer_types": [CHUNKED, SLIDING, SLIDING, LINEAR], "sliding_window": 8, "attention_chunk_size": 9},
            r"layer 0 chunked_attention \(9 tokens\), layers 1\.\.2 sliding_attention \(8 tokens\), "
            r"layer 3 linear_attention; it must be a model with full attention",
        ),
    ],
)
def test_unfit_models_are_refused_with_the_layers_and_the_reason(settings, reason):
    each = config(**settings)
    with pytest.raises(InvalidRequest, match=reason) as refusal:
        layers_of(each, each.num_hidden_layers)
    assert refusal.value.field == "model"


@pytest.mark.parametrize(
    ("settings", "in_chunks", "only_kv"),
    [
        ({}, True, True),
        ({"sliding_window": 64, "layer_types": [SLIDING, FULL]}, True, True),
        ({"layer_types": [LINEAR, FULL]}, False, False),
        ({"layer_types": [LINEAR, FULL], "model_type": "qwen3_5_text"}, True, False),
        ({"layer_types": ["hybrid", "hybrid"]}, False, False),
        ({"rope_parameters": {"rope_type": "longrope"}}, False, False),
        ({"rope_parameters": {FULL: {"rope_type": "dynamic"}}}, False, False),
        ({"rope_parameters": {"rope_type": "yarn"}}, True, True),
        ({"num_kv_shared_layers": 2}, True, False),
    ],
)
def test_what_can_be_read_in_chunks_and_kept(settings, in_chunks, only_kv):
    layers = layers_of(config(**settings), 2 if "layer_types" in settings else 4)
    assert (layers.reads_in_chunks, layers.is_only_kv) == (in_chunks, only_kv)


def test_only_loaded_layers_count():
    each = config(layer_types=[SLIDING, FULL, SLIDING, FULL], sliding_window=8)
    assert layers_of(each, 3) == Layers(3, (1,))
    with pytest.raises(InvalidRequest, match=r"layer 0 sliding_attention"):
        layers_of(each, 1)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (Layers(4, (0, 1, 2, 3)), []),
        (Layers(4, (1, 3)), ["full attention score: 1, 3"]),
        (Layers(4, (0, 1)), ["score: 0, 1", "--start-layer <= 1"]),
        (Layers(2, (0, 1), is_only_kv=False), ["prefix_cache_mib has no effect"]),
        (Layers(2, (0, 1), reads_in_chunks=False, is_only_kv=False), ["prefix_cache_mib", "chunk_tokens"]),
    ],
)
def test_what_an_operator_should_know_is_said(layers, expected):
    said = list(layers.limits())
    assert len(said) == len(expected)
    assert all(part in limit for part, limit in zip(expected, said, strict=True))


def test_a_model_whose_last_layers_use_earlier_keys_is_loaded_whole():
    with pytest.raises(InvalidRequest, match=r"layers is 0\.\.2; it must be 0\.\.3, because the last layers use keys"):
        layers_of(config(num_kv_shared_layers=2), 3)


def test_a_truncated_configuration_has_one_value_for_each_layer_left():
    each = config(layer_types=[SLIDING, FULL, FULL], mlp_layer_types=["dense"] * 3, eos_token_id=[1, 2, 3])
    truncate(each, 2)
    assert (each.num_hidden_layers, each.layer_types, each.mlp_layer_types) == (2, [SLIDING, FULL], ["dense"] * 2)
    assert each.eos_token_id == [1, 2, 3]
