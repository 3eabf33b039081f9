"""Fake services, run as real processes, and explanations."""

import os
from pathlib import Path

import numpy as np
import psutil
import pytest

from presift.cli.stack.process import ServiceProcess
from presift_client import Decision, ExplainedSpan, Explanation, KvMask, Model

FAKE = "fake_service"


@pytest.fixture
def fakes(monkeypatch):
    """Lets child processes find `fake_service`."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


@pytest.fixture
def start(fakes, tmp_path):
    """Flags -> a running fake service, stopped after the test."""
    started = []

    def start(*flags, environment=None):
        log = tmp_path / f"{len(started)}.log"
        started.append(ServiceProcess("fake", FAKE, ["fake", *flags], log, environment or {}))
        return started[-1]

    yield start
    for service in started:
        if service.exit_code() is None:
            service.stop(0.1)


@pytest.fixture
def no_children():
    """Asserts that the test leaves no child process behind."""
    before = {child.pid for child in psutil.Process(os.getpid()).children(recursive=True)}
    yield
    after = {child.pid for child in psutil.Process(os.getpid()).children(recursive=True)}
    assert after <= before


MODEL = Model("m", "r", 100)


@pytest.fixture
def explained():
    """tokens (their texts), with `kept`, `protected`, `importance` of each, and a KV mask bool[layers, heads, tokens]
    -> the explanation."""

    def explained(tokens, kept=None, protected=(), importance=None, *, kv=None, has_text=True):
        ends = np.cumsum([len(token) for token in tokens]).tolist()
        places = [(end - len(token), end) if has_text else None for end, token in zip(ends, tokens, strict=True)]
        count, mask = len(tokens), None
        shares = [None] * count
        if kv is not None:
            bits = np.packbits(kv, axis=2, bitorder="little").tobytes()
            mask, shares = KvMask(*kv.shape, bits), kv.mean(axis=(0, 1)).tolist()
        flags = [share > 0 for share in shares] if kept is None and kv is not None else kept or [True] * count
        values = importance or [1 / count] * count
        decision = Decision(
            "spec_kv" if mask else "spec_pc", "requested", "a <b> & c", count, 4, 5, len(protected), 0.5, "not_used",
            MODEL, MODEL, 1.0, 0.0, 3.0,
        )  # fmt: skip
        spans = tuple(
            ExplainedSpan(i, i + 1, places[i], bool(flags[i]), i in protected, values[i], shares[i])
            for i in range(count)
        )
        text = "".join(tokens) if has_text else ""
        return Explanation(decision, spans, text, mask, 0.75 if mask else None)

    return explained
