"""Fake services, run as real processes."""

import os
from pathlib import Path

import psutil
import pytest

from presift.cli.process import ServiceProcess

FAKE = "fake_service"


@pytest.fixture
def fakes(monkeypatch):
    """Lets child processes find `fake_service`."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


@pytest.fixture
def start(fakes, tmp_path):
    """flags -> a running fake service; what is left is stopped."""
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
    """Holds that the test leaves no child process behind."""
    before = {child.pid for child in psutil.Process(os.getpid()).children(recursive=True)}
    yield
    after = {child.pid for child in psutil.Process(os.getpid()).children(recursive=True)}
    assert after <= before
