import sys
from pathlib import Path

# Scripts, not a package.
sys.path.insert(0, str(Path(__file__).parents[3] / "ops" / "supply_chain"))
