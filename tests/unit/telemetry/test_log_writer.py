"""A log that nobody reads: lines are dropped and counted, and neither a call nor the end of the process waits."""

import logging
import os
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from presift.telemetry.log_writer import MAX_WAITING, LogWriter

LINES = 3 * MAX_WAITING
# A pipe holds 64 KiB: more than this takes up MAX_WAITING lines.
TEXT = "x" * 1_000

UNREAD = f"""
import logging, sys
from presift.telemetry.logs import LogFormat, set_up
dropped = []
set_up("INFO", LogFormat.TEXT, lambda: dropped.append(1))
for number in range({LINES}):
    logging.getLogger("presift.x").info("{TEXT}")
print(len(dropped), flush=True)
"""


@pytest.fixture
def pipe():
    ends = os.pipe()
    yield ends
    for end in ends:
        with suppress(OSError):
            os.close(end)


@pytest.fixture
def writer(pipe):
    """A writer to the pipe, and the list of what it drops."""
    dropped = []
    handler = LogWriter(pipe[1], lambda: dropped.append(1))
    handler.setFormatter(logging.Formatter("%(message)s"))
    return handler, dropped


def line(text):
    return logging.LogRecord("presift.x", logging.INFO, "", 0, text, (), None)


def test_a_reader_that_stalls_costs_lines_and_no_time(pipe, writer):
    handler, dropped = writer
    began_s = time.monotonic()
    for number in range(LINES):
        handler.handle(line(f"{number:04} {TEXT}"))
    assert time.monotonic() - began_s < 2
    kept = LINES - len(dropped)
    assert MAX_WAITING <= kept < MAX_WAITING + 100
    with os.fdopen(os.dup(pipe[0])) as reading:
        said = [reading.readline() for _ in range(kept)]
    assert {each[5:] for each in said} == {f"{TEXT}\n"}  # whole
    numbers = [int(each[:4]) for each in said]
    assert numbers == sorted(set(numbers)) and numbers[:MAX_WAITING] == list(range(MAX_WAITING))
    handler.handle(line("after"))
    handler.flush()
    assert os.read(pipe[0], 100) == b"after\n"


def test_lines_for_a_reader_that_is_gone_are_dropped(pipe, writer):
    handler, dropped = writer
    os.close(pipe[0])
    for _ in range(3):
        handler.handle(line("unheard"))
    handler.flush()
    assert len(dropped) == 3


def test_a_process_whose_log_is_not_read_goes_on_and_ends(pipe):
    command = [sys.executable, "-c", UNREAD]
    ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=pipe[1], timeout=30, check=True)
    assert int(ended.stdout) > MAX_WAITING


def test_the_last_lines_of_a_process_are_written():
    script = UNREAD.replace(str(LINES), "20").replace(TEXT, "said")
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stderr.count(" INFO presift.x said\n") == 20
