"""Adding a policy as services/README.md says it: `newest` keeps the newest tokens and the protected spans.

POLICY is the whole change, by file: the text of a new file, or pairs of a line and what it becomes.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STACK = "tests.contract.fakes.tiny_stack"
MOST_FILES = 8

POLICY = {
    "protos/presift/v1/plan.proto": [
        (
            "  ROUTE_SPEC_KV_PC = 5;\n",
            "  ROUTE_SPEC_KV_PC = 5;\n  // ROUTE_NEWEST reads the newest prompt tokens.\n  ROUTE_NEWEST = 6;\n",
        ),
        (
            "// Policy turns importance into a mask.\n",
            "// Newest keeps the newest tokens.\nmessage Newest {\n  uint32 capacity = 1;\n"
            "  optional uint32 window = 2;\n}\n\n// Policy turns importance into a mask.\n",
        ),
        ("    SpecKvPc spec_kv_pc = 3;\n", "    SpecKvPc spec_kv_pc = 3;\n    Newest newest = 4;\n"),
    ],
    "services/presift/core/plan.py": [
        ('    SPEC_KV_PC = "spec_kv_pc"\n', '    SPEC_KV_PC = "spec_kv_pc"\n    NEWEST = "newest"\n'),
    ],
    "services/presift/core/policies/newest.py": '''\
"""Newest: the newest tokens and the protected spans, whatever the draft reads in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from presift.core.plan import Route
from presift.core.policies.fields import at_least
from presift.core.policies.policy import Policy
from presift.core.policies.spec_pc import SpecPc


@dataclass(frozen=True, slots=True)
class Newest(Policy):
    """The newest `window` tokens; the protected spans have the rest of `capacity`. Raises InvalidRequest."""

    route: ClassVar[Route] = Route.NEWEST
    reads_whole_prompt: ClassVar[bool] = False
    drops_kv: ClassVar[bool] = False

    capacity: int
    window: int = 32

    def __post_init__(self) -> None:
        at_least("newest.window", self.window, 1)
        at_least("newest.capacity", self.capacity, self.window)

    @property
    def prompt_stage(self) -> SpecPc:
        return SpecPc(
            self.capacity, window=self.window, kernel=1, neighbors=0, start_layer=0, weighted_query=False
        )

    @property
    def kv_stage(self) -> None:
        return None

    @property
    def scoring_policy(self) -> SpecPc:
        return self.prompt_stage
''',
    "services/presift/core/policies/__init__.py": [
        (
            "from presift.core.policies.policy import Policy\n",
            "from presift.core.policies.newest import Newest\nfrom presift.core.policies.policy import Policy\n",
        ),
        ("in (SpecPc, SpecKv, SpecKvPc)}", "in (SpecPc, SpecKv, SpecKvPc, Newest)}"),
        ('    "KvSelection",\n', '    "KvSelection",\n    "Newest",\n'),
    ],
    "services/presift/orchestrator/routing/newest_route.py": '''\
"""Route newest: the newest tokens within the budget. Pure."""

from __future__ import annotations

from presift.core.plan import Route
from presift.core.policies import Newest
from presift.orchestrator.routing.choice import Reason, RouteChoice, RoutingInputs, value_or
from presift.orchestrator.routing.full_route import protected_over_budget


def newest(inputs: RoutingInputs) -> RouteChoice:
    """The newest tokens; full if the prompt fits the budget, or if the tokens that must be kept do not."""
    template = inputs.defaults.spec_pc
    capacity = min(value_or(inputs.budget.capacity, template.capacity), inputs.room)
    if inputs.prompt_tokens <= capacity:
        return RouteChoice(Route.FULL, Reason.WITHIN_BUDGET, f"{inputs.prompt_tokens} prompt tokens fit {capacity}")
    if inputs.must_keep > capacity:
        return protected_over_budget(inputs, inputs.must_keep, capacity)
    policy = Newest(capacity, window=capacity - max(0, inputs.must_keep - template.window))
    return RouteChoice(Route.NEWEST, Reason.REQUESTED, f"keeps {capacity} tokens", policy)
''',
    "services/presift/orchestrator/routing/candidates.py": [
        (
            "from presift.orchestrator.routing.kv_routes import spec_kv, spec_kv_pc\n",
            "from presift.orchestrator.routing.kv_routes import spec_kv, spec_kv_pc\n"
            "from presift.orchestrator.routing.newest_route import newest\n",
        ),
        ("    Route.SPEC_KV_PC: spec_kv_pc,\n", "    Route.SPEC_KV_PC: spec_kv_pc,\n    Route.NEWEST: newest,\n"),
    ],
    "services/presift/orchestrator/routing/choice.py": [
        ("Route.SPEC_KV_PC, Route.SPEC_PC)\n", "Route.SPEC_KV_PC, Route.SPEC_PC, Route.NEWEST)\n"),
    ],
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of protos and services with the policy, its protos generated."""
    root = tmp_path_factory.mktemp("copy")
    for folder in ("protos", "services"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for path, change in POLICY.items():
        write(root / path, change)
    protos = sorted(path.relative_to(root) for path in (root / "protos").rglob("*.proto"))
    outputs = ("--python_out=services", "--grpc_python_out=services")
    run(root, "-m", "grpc_tools.protoc", "-I", "protos", *outputs, *protos)
    return root


def write(path, change):
    if isinstance(change, str):
        assert not path.exists()
        path.write_text(change)
        return
    text = path.read_text()
    for line, becomes in change:
        assert text.count(line) == 1, f"{path}: {line!r}"
        text = text.replace(line, becomes)
    path.write_text(text)


def run(root, *arguments):
    """What Python prints on this copy's services."""
    environment = {
        **os.environ,
        "PYTHONPATH": f"{root / 'services'}{os.pathsep}{ROOT}",
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [sys.executable, "-P", *map(str, arguments)]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_readme_lists_the_files_and_they_are_few():
    section = (ROOT / "services" / "README.md").read_text().partition("\n## Add a policy\n")[2].partition("\n## ")[0]
    listed = re.findall(r"^\d+\. `([\w./]+)`", section, re.MULTILINE)
    assert [path.replace("NAME", "newest") for path in listed] == list(POLICY)
    assert len(listed) <= MOST_FILES


@pytest.mark.processes
def test_a_request_is_served_with_it(copy, tiny_model):
    found = json.loads(run(copy, "-m", STACK, tiny_model("tinyq"), "newest"))
    protected, newest = [4, 5], list(range(87, 101))
    assert found == {
        "services": str(copy / "services" / "presift"),
        "route": "ROUTE_NEWEST",
        "policy": "newest",
        "detail": found["detail"],
        "kept_tokens": 16,
        # The target echoes what it reads.
        "answer": [*protected, *newest],
    }
    assert "keeps 16 tokens" in found["detail"]
