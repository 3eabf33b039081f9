"""The TypeScript client, built once, and calls of it in a process of Node."""

import asyncio
import functools
import json
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[3] / "clients" / "typescript"
_PROBE = FOLDER / "dist" / "test" / "probe.js"


def run(*command, limit_s=240):
    """A finished command in the client's folder."""
    return subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, timeout=limit_s, check=False)


@functools.cache
def trouble():
    """Why the client cannot be built on this machine, in words; empty once it is built. The compiler's errors are ours:
    they are no trouble of the machine."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        return "node and npm are missing"
    if not (FOLDER / "node_modules" / ".package-lock.json").exists():
        done = run("npm", "ci", "--silent", "--no-audit")
        if done.returncode:
            return f"the client's packages could not be installed: {(done.stderr or done.stdout)[-200:]}"
    done = run("npm", "run", "--silent", "build")
    assert done.returncode == 0, done.stdout + done.stderr
    return ""


def needed():
    """Skips, saying why, where there is no Node."""
    if why := trouble():
        pytest.skip(why)


class Prober:
    """A process of Node in which calls are made, one after the other; `told` is what the last one told so far."""

    def __init__(self):
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(["node", str(_PROBE)], stdin=pipe, stdout=pipe, text=True)
        self.told = []

    async def __call__(self, address, call="stream", **probe):
        """What one call of the client told: a value for each line."""
        return await asyncio.to_thread(self._told, json.dumps({"address": address, "call": call, **probe}))

    def _told(self, probe):
        self.told = told = []
        self._process.stdin.write(f"{probe}\n")
        self._process.stdin.flush()
        while (line := self._process.stdout.readline()) != '"end"\n':
            assert line, "the process of Node ended"
            told.append(json.loads(line))
        return told

    def stop(self):
        """It ends by itself once nothing more is to be read, or the client leaves something open."""
        self._process.stdin.close()
        assert self._process.wait(20) == 0
        self._process.stdout.close()
