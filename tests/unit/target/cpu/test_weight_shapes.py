"""On presift's CPU platform SGLang loads weights in the shapes of the checkpoint."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest

pytestmark = pytest.mark.skipif(find_spec("sglang") is None, reason="needs SGLang")

# In a process of its own: `keep` changes SGLang for good.
CODE = """
from types import SimpleNamespace

from presift.models.torchvision_ops import declare_missing

declare_missing()

from sglang.srt.configs import update_config
from presift.target.cpu.device import CpuPlatform

update_config.may_get_weight_block_size = lambda *_: None
{first}
sizes = {{"moe_intermediate_size": 48, "intermediate_size": 80, "num_attention_heads": 14, "num_key_value_heads": 2}}
hf = SimpleNamespace(**sizes, hidden_size=896, head_dim=64)
model = SimpleNamespace(
    **sizes, hf_config=hf, hf_text_config=hf, quantization=None, get_total_num_kv_heads=lambda: 2, head_dim=64
)
update_config.adjust_config_with_unaligned_cpu_tp(model, None, 4)
print([getattr(hf, name) for name in sizes])
"""
START = "CpuPlatform().init_backend()"


def run(first: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", CODE.format(first=first)], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("first", "expected"), [(START, "[48, 80, 14, 2]"), ("", "[128, 128, 28, 4]")], ids=["kept", "as SGLang does"]
)
def test_sizes(first: str, expected: str) -> None:
    assert run(first).stdout.splitlines()[-1] == expected


def test_a_renamed_function_ends_the_start() -> None:
    done = run(f"del update_config.update_intermediate_size\n{START}")
    assert done.returncode
    assert "SGLang has no sglang.srt.configs.update_config.update_intermediate_size" in done.stderr
