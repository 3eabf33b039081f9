"""The scripts of ops/sglang and ops/supply_chain are no packages."""

import sys
from pathlib import Path

OPS = Path(__file__).parents[2] / "ops"
sys.path[:0] = [str(OPS / "sglang"), str(OPS / "supply_chain")]
