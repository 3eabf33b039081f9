"""What the suites came to: their rows, what is wrong about one, and the tables of RESULTS.md."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .limit_senders import BYTES_PER_BYTE, FIXED_BYTES, STALL_S
from .neighbours import NeighbourRow, neighbours_table
from .scenarios import Row, table_of
from .upgrade import UpgradeRow, upgrade_table

MIB = 2**20


@dataclass(frozen=True, slots=True)
class LimitRow:
    """A request at its limit, of `size` bytes: the longest stall of the event loop in processor time, what the
    service's memory grew by at its peak, and what it may grow by."""

    limit: str
    method: str
    size: int
    outcome: str
    stall_s: float
    grown_bytes: int
    most_bytes: int
    most_stall_s: float = STALL_S

    def complaints(self) -> list[str]:
        """What must not be."""
        found = []
        if self.stall_s >= self.most_stall_s:
            found.append(f"the event loop stood still for {self.stall_s * 1000:.0f} ms of processor time")
        if self.grown_bytes > self.most_bytes:
            found.append(f"memory grew by {self.grown_bytes / MIB:.0f} MiB for {self.size} bytes")
        return found


def limits_table(rows: Sequence[LimitRow]) -> list[str]:
    """As lines of Markdown."""
    lines = [
        "| limit | sent to | bytes | outcome | longest stall, ms of processor time |"
        " memory at its peak, MiB more | of at most |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        memory = (f"{max(0, row.grown_bytes) / MIB:.0f}", f"{row.most_bytes / MIB:.0f}")
        cells = (row.limit, row.method, f"{row.size:,}", row.outcome, f"{row.stall_s * 1000:.0f}", *memory)
        lines.append(f"| {' | '.join(cells)} |")
    return lines


FAULTS = """# The fault suite's table

Written by `make faults` (`pytest tests/faults --write-results`). Real processes; meanwhile 20 callers send requests on
all routes, and each answer is checked token by token. A fault lasts 4 s. A killed service is started again after them;
recovery counts from when it reports that it is ready. Deadlines are 5, 8 and 12 s.
"""
FLEET = """# The fleet's table

Written by `make faults` (`pytest tests/faults/test_fleet.py --write-results`). Three orchestrators, four targets that
are found by a DNS name, two drafts, and two Valkeys under a Sentinel. Meanwhile 12 callers over gRPC, who know all
orchestrators, and one over HTTP send requests on all routes, and each answer is checked. Deadlines are 60 s. A fault
lasts at least 4 s, and recovery counts from its end. The OOM kill is the kernel's, by a memory limit, unless the table
says otherwise. Clocks are those of orchestrators and targets.
"""
NEIGHBOURS = """# The noisy-neighbour table

Written by `pytest tests/faults/test_neighbours.py --write-results`. Tenant A does one thing without a pause, tenant B
asks four short questions at a time, half of them with a new prompt for the draft. The target is an echo that takes
0.1 s for its first token. B's 95th percentile of the time to first token, quiet and noisy in turn; medians over the
rounds. The ratio is the median of the rounds' ratios and may be 2. A's tokens are counted by the target.
"""
LIMITS = f"""# The table of limits

Written by `pytest tests/faults/test_limits_rows.py --write-results`. One request at its limit to a real process. The
event loop may stand still for {STALL_S * 1000:.0f} ms of processor time.
The memory may grow by {FIXED_BYTES // MIB} MiB and by {BYTES_PER_BYTE} bytes for each byte that arrives
(more for spans of an explanation).
"""
UPGRADE = """# The table of an upgrade and a rollback

Written by `make versions`. Two drafts, two targets and two orchestrators of an earlier version are replaced one after
another by this version's ("new"), then by the earlier one's ("old"). Meanwhile four callers over gRPC and one over HTTP
ask on all routes, and each answer is checked token by token. Callers must notice nothing, unless the test with its
proxies stood still for two seconds, on a busy machine: then no answer may be wrong, and a lost call must be an error.
"""


@dataclass
class Results:
    """The rows of all suites of one run."""

    faults: list[Row] = field(default_factory=list)
    fleet: list[Row] = field(default_factory=list)
    neighbours: list[NeighbourRow] = field(default_factory=list)
    limits: list[LimitRow] = field(default_factory=list)
    upgrade: list[UpgradeRow] = field(default_factory=list)

    def sections(self) -> Iterator[tuple[str, list[str]]]:
        """The head and the table of each suite that ran."""
        if self.faults:
            yield FAULTS, table_of(self.faults)
        if self.fleet:
            yield FLEET, table_of(self.fleet)
        if self.neighbours:
            yield NEIGHBOURS, neighbours_table(self.neighbours)
        if self.limits:
            yield LIMITS, limits_table(self.limits)
        if self.upgrade:
            yield UPGRADE, upgrade_table(self.upgrade)

    def write(self, path: Path) -> None:
        """Replace the sections of those suites. The others stay."""
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        known = {part.partition("\n")[0]: part.strip() for part in re.split(r"(?m)^(?=# )", text) if part}
        for head, table in self.sections():
            known[head.partition("\n")[0]] = "\n".join([head, *table])
        order = [head.partition("\n")[0] for head in (FAULTS, FLEET, NEIGHBOURS, LIMITS, UPGRADE)]
        path.write_text("\n\n".join(known[title] for title in order if title in known) + "\n", encoding="utf-8")
