"""The scripts of ops/supply_chain are no package."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "ops" / "supply_chain"))
