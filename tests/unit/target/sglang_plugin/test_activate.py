"""The plugin's entry point: inert unless switched on, loud about what it could not hook."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points
from importlib.util import find_spec

import pytest

pytestmark = pytest.mark.processes
needs_sglang = pytest.mark.skipif(find_spec("sglang") is None, reason="needs SGLang")


def run(code: str, **environment: str) -> str:
    inherited = {name: value for name, value in os.environ.items() if name != "PRESIFT_SGLANG_PLUGIN"}
    command = [sys.executable, "-W", "ignore", "-c", code]
    inherited |= environment
    done = subprocess.run(command, check=False, env=inherited, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_it_is_the_distributions_entry_point() -> None:
    (door,) = entry_points(group="sglang.srt.plugins", name="presift")
    assert door.value == "presift.target.sglang_plugin:activate"


@pytest.mark.parametrize("environment", [{}, {"PRESIFT_SGLANG_PLUGIN": "0"}, {"PRESIFT_SGLANG_PLUGIN": ""}], ids=str)
def test_it_is_inert_and_light_unless_switched_on(environment: dict[str, str]) -> None:
    code = (
        "import sys; from presift.target.sglang_plugin import activate; activate();"
        "print({'torch', 'sglang', 'numpy', 'grpc'} & set(sys.modules))"
    )
    assert run(code, **environment) == "set()"


_PREPARED = "from presift.models.torchvision_ops import declare_missing; declare_missing();"
_LOADED = (
    "import sglang.srt.plugins as plugins;"
    "from sglang.srt.plugins.hook_registry import HookRegistry;"
    "plugins.load_plugins();"
)


@needs_sglang
def test_nothing_is_hooked_unless_switched_on() -> None:
    code = (
        f"{_PREPARED}{_LOADED} print([len(HookRegistry._hooks), 'presift.target.sglang_plugin.hooks' in sys.modules])"
    )
    assert run(f"import sys; {code}") == "[0, False]"


@needs_sglang
def test_switched_on_every_target_of_the_installed_sglang_is_hooked_once() -> None:
    code = (
        f"{_PREPARED}{_LOADED}"
        "from presift.target.sglang_plugin.hooks import Plugin, missing_hooks;"
        "from presift.target.sglang_plugin.sglang_names import installed;"
        "from presift.target.sglang_plugin.support import unsupported_sglang;"
        "hooks = {target: each[0][1] for target, each in HookRegistry._hooks.items()};"
        "targets = set(Plugin(installed()).hooks());"
        "print([unsupported_sglang(installed()), missing_hooks(hooks), targets == set(hooks) == HookRegistry._patched,"
        "{len(hooks) for hooks in HookRegistry._hooks.values()}])"
    )
    assert run(code, PRESIFT_SGLANG_PLUGIN="1") == "[None, None, True, {1}]"


@needs_sglang
def test_a_renamed_target_is_named() -> None:
    code = (
        f"{_PREPARED}"
        "from sglang.srt.managers.schedule_batch import Req; del Req._compute_max_prefix_len;"
        f"{_LOADED}"
        "from presift.target.sglang_plugin.hooks import missing_hooks;"
        "print(missing_hooks({target: each[0][1] for target, each in HookRegistry._hooks.items()}))"
    )
    name = "sglang.srt.managers.schedule_batch.Req._compute_max_prefix_len"
    assert run(code, PRESIFT_SGLANG_PLUGIN="1") == f"SGLang functions not hooked: {name}"
