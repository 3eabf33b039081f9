"""The target plugin's torch kernel on the vectors of `test_compress_kv_raw`, where the numpy reference is tested.

Not expressed: what the policy refuses (12 cases) and the two prompts that fit, for which the plugin scores nothing.
"""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from presift.target.sglang_plugin.kv_selector import KvSelector  # noqa: E402 - it needs torch

CASES = 112
NOT_SCORED = {*range(50, 56), *range(106, 112), 48, 104}


def _kept(stored, case, policy, chunks):
    """bool[kv_heads, n]. The authors' rows end with their window; ours would go on with a final prompt token."""
    queries, keys = (torch.from_numpy(stored.arrays[f"{case['tensors']}_{name}"][0]).transpose(0, 1) for name in "qk")
    tokens, _, size = keys.shape
    protected = torch.zeros(tokens - policy.window, dtype=torch.bool)
    # A lookahead of -1: the final token's row is left out.
    run = KvSelector(policy, tokens + 1, -1, policy.capacity, 1, protected, reports_mask=True)
    rows = queries[-policy.window :]
    for part in torch.arange(policy.window).chunk(min(chunks, policy.window)):
        first, end = run.first_row + int(part[0]), run.first_row + int(part[-1]) + 1
        run.add(0, rows[part], first, keys[:end], size**-0.5)
    return run.mask.kept[0, :, :tokens]


@pytest.mark.parametrize("chunks", [1, 3])
@pytest.mark.parametrize("index", sorted(set(range(CASES)) - NOT_SCORED))
def test_the_same_kv_pairs_are_kept(index, chunks, vectors, spec_kv):
    stored = vectors("compress_kv_raw")
    case = stored.json["cases"][index]
    policy = spec_kv(case["args"])
    kept = _kept(stored, case, policy, chunks)
    ranked = stored.stable(f"topk_{index}").reshape(kept.shape[0], -1)
    window = range(kept.shape[1] - policy.window, kept.shape[1])
    for head, positions in enumerate(ranked):
        assert np.flatnonzero(kept[head]).tolist() == [*sorted(positions.tolist()), *window]
