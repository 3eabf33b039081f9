"""Files that change: read once, read again when they did, kept where the new ones do not do."""

import logging

import pytest

from presift.core.errors import PresiftError
from presift.rpc.security.file_watcher import RETRY_S, FileWatcher


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_text("1")
    return path


def number(file):
    reads = []

    def read():
        reads.append(1)
        try:
            return [int(file.read_text())]
        except (OSError, ValueError):
            raise PresiftError("no number") from None

    read.reads = reads
    return read


def test_it_is_read_again_only_when_it_changed(file):
    read = number(file)
    watched = FileWatcher([file], read)
    first = watched.current()
    assert first == [1] and watched.current() is first and len(read.reads) == 1
    file.write_text("22")
    assert watched.current() == [22] and len(read.reads) == 2


def test_a_file_put_in_its_place_is_seen(file):
    watched = FileWatcher([file], number(file))
    other = file.with_name("other")
    other.write_text("2")
    other.replace(file)
    assert watched.current() == [2]


def test_an_unusable_file_is_refused_and_logged_once(file, caplog):
    watched = FileWatcher([file], number(file))
    for broken in ("", "x", "half"):
        file.write_text(broken)
        assert watched.current() == watched.current() == [1]
    file.unlink()
    assert watched.current() == [1]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    file.write_text("3")
    assert watched.current() == [3]


def test_an_unusable_file_is_not_read_at_every_call(file, monkeypatch):
    """A typo in a file of thousands of keys must not cost every call seconds."""
    clock = [0.0]
    monkeypatch.setattr("presift.rpc.security.file_watcher.time.monotonic", lambda: clock[0])
    read = number(file)
    watched = FileWatcher([file], read)
    file.write_text("x")
    for _ in range(100):
        assert watched.current() == [1]
    assert len(read.reads) == 2
    clock[0] = RETRY_S
    assert [watched.current() for _ in range(10)] == [[1]] * 10 and len(read.reads) == 3
    file.write_text("44")
    assert watched.current() == [44] and watched.current() == [44] and len(read.reads) == 4


def test_a_first_reading_that_fails_is_an_error(file):
    file.write_text("x")
    with pytest.raises(PresiftError):
        FileWatcher([file], number(file))


def test_without_files_nothing_changes():
    watched = FileWatcher((), lambda: ["value"])
    assert watched.current() is watched.current()


def test_files_are_looked_at_no_more_often_than_is_said(file, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("presift.rpc.security.file_watcher.time.monotonic", lambda: clock[0])
    watched = FileWatcher([file], number(file), every_s=1.0)
    file.write_text("22")
    clock[0] = 0.99
    assert watched.current() == [1]
    clock[0] = 1.0
    assert watched.current() == [22]
    file.write_text("333")
    assert watched.current() == [22]
    clock[0] = 2.0
    assert watched.current() == [333]
