"""Folders that may not be loaded are refused by name, and nothing that lies in one is ever run."""

import json
import os
import pickle
import shutil
import struct
import sys

import pytest

from presift.core.errors import InvalidRequest
from presift.models.folder import resolve
from presift.models.safety import check_folder
from presift.orchestrator.prompt.loader import load_tokenizer


class Canary:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.fixture
def folder(tiny_model, tmp_path):
    return shutil.copytree(tiny_model("tinyq"), tmp_path / "model")


@pytest.fixture
def canary(tmp_path):
    return tmp_path / "it-ran"


def set_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def plant_code(folder, canary):
    (folder / "evil.py").write_text(
        f"open({str(canary)!r}, 'w')\nclass Config: ...\nclass Model: ...\nclass Tok: ...\n"
    )
    set_config(folder, auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"})


def test_a_good_folder_is_taken(folder):
    assert resolve(str(folder)).id == "model"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.PTH", "x.ckpt", "training_args.pkl"])
def test_a_pickled_file_beside_the_weights_is_refused(folder, canary, name):
    (folder / name).write_bytes(pickle.dumps(Canary(canary)))
    with pytest.raises(InvalidRequest, match=name) as refused:
        resolve(str(folder))
    assert "not a pickled file" in refused.value.message and not canary.exists()


def test_the_canary_sings(canary):
    pickle.loads(pickle.dumps(Canary(canary))).close()
    assert canary.exists()


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors", "chat_template.jinja"])
def test_a_link_out_of_the_folder_is_refused(folder, tmp_path, name):
    outside = tmp_path / "outside"
    (folder / name).rename(outside) if (folder / name).exists() else outside.write_text("{}")
    (folder / name).symlink_to(outside)
    with pytest.raises(InvalidRequest, match="not a link out of it"):
        resolve(str(folder))


@pytest.mark.parametrize("place", ["original", "onnx/fp16", ".hidden"])
def test_folders_in_the_folder_are_checked_too(folder, tmp_path, canary, place):
    inner = folder / place
    inner.mkdir(parents=True)
    resolve(str(folder))
    (inner / "consolidated.00.pth").write_bytes(pickle.dumps(Canary(canary)))
    with pytest.raises(InvalidRequest, match=r"consolidated\.00\.pth"):
        resolve(str(folder))
    (inner / "consolidated.00.pth").unlink()
    (inner / "weights.json").symlink_to(tmp_path / "outside.json")
    with pytest.raises(InvalidRequest, match=r"weights\.json.*not a link out of it"):
        resolve(str(folder))


def test_a_linked_folder_is_refused_if_it_is_elsewhere(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (folder / "here").mkdir()
    (folder / "around").symlink_to("here")
    (folder / "here" / "again").symlink_to("..")  # a cycle
    resolve(str(folder))
    (folder / "more").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidRequest, match="not a link out of it"):
        resolve(str(folder))


def test_a_folder_that_cannot_be_read_is_refused(folder, monkeypatch):
    """Not passed over; root may read any, so the system's refusal is made up."""
    closed = folder / "closed"
    closed.mkdir()
    scandir = os.scandir

    def refusing(path):
        if os.fspath(path) == os.fspath(closed):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(InvalidRequest, match=r"closed.*a readable folder \(PermissionError\)"):
        check_folder(folder)


def write_index(folder, weight_map, name="model.safetensors.index.json"):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize("path", ["model.safetensors", "parts/model-1.safetensors", "./model.safetensors", "a..b"])
def test_an_index_of_files_in_the_folder_is_taken(folder, path):
    write_index(folder, {"a": "model.safetensors", "b": path})
    resolve(str(folder))


@pytest.mark.parametrize("name", ["model.safetensors.index.json", "inner/other.index.json"])
@pytest.mark.parametrize("path", ["../model.safetensors", "parts/../../m", "/etc/passwd", "..", 5, None, ["m"]])
def test_an_index_that_names_files_elsewhere_is_refused(folder, name, path):
    write_index(folder, {"a": "model.safetensors", "b": path}, name)
    with pytest.raises(InvalidRequest, match=r"index\.json.*weight_map"):
        resolve(str(folder))


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": ["../m"]}'])
def test_an_index_that_is_none_is_refused(folder, text):
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(InvalidRequest, match=r"index\.json"):
        resolve(str(folder))


def test_a_link_within_the_folder_is_taken(folder):
    (folder / "data").mkdir()
    (folder / "model.safetensors").rename(folder / "data" / "weights")
    (folder / "model.safetensors").symlink_to("data/weights")
    resolve(str(folder))


def test_a_snapshot_of_the_hubs_cache_is_taken_with_its_blobs_alone(folder, tmp_path):
    cache, blobs = tmp_path / "models--a--b", tmp_path / "models--a--b" / "blobs"
    snapshot = cache / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(folder.iterdir()):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    check_folder(snapshot)
    (snapshot / "more.json").symlink_to("../../../outside.json")
    with pytest.raises(InvalidRequest, match=r"more\.json"):
        check_folder(snapshot)


HEADERS = {
    "longer than the file": struct.pack("<Q", 10_000) + b"{}",
    "absurd": struct.pack("<Q", 2**64 - 1) + b"{}",
    "nothing": b"",
    "no JSON": struct.pack("<Q", 8) + b"no json!",
    "a list": struct.pack("<Q", 2) + b"[]",
    "too deep": struct.pack("<Q", 100_000) + b"[" * 100_000,
}


def header(text):
    return struct.pack("<Q", len(text)) + text.encode()


PLACES = {
    "beyond the file": header('{"a": {"data_offsets": [0, 99]}}'),
    "before the data": header('{"a": {"data_offsets": [-9, 0]}}'),
    "reversed": header('{"a": {"data_offsets": [4, 0]}}') + bytes(8),
    "no numbers": header('{"a": {"data_offsets": ["x", "y"]}}'),
    "fractions": header('{"a": {"data_offsets": [0.0, 4.0]}}') + bytes(8),
    "one number": header('{"a": {"data_offsets": [1]}}'),
    "none": header('{"a": {}}'),
}


@pytest.mark.parametrize("raw", (HEADERS | PLACES).values(), ids=HEADERS | PLACES)
def test_weights_that_are_no_safetensors_are_refused(folder, raw):
    (folder / "model.safetensors").write_bytes(raw)
    with pytest.raises(InvalidRequest, match=r"model\.safetensors"):
        resolve(str(folder))


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "[" * 100_000, "\xff"])
def test_a_config_that_is_no_object_is_refused(folder, text):
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidRequest, match=r"config\.json"):
        resolve(str(folder))


def test_code_beside_a_model_that_is_known_is_not_run(folder, canary):
    from presift.draft.transformers_scorer import TransformersScorer

    plant_code(folder, canary)
    TransformersScorer(resolve(str(folder)))
    assert not canary.exists() and "evil" not in sys.modules


def test_a_model_that_needs_its_own_code_is_refused(folder, canary):
    from presift.draft.transformers_scorer import TransformersScorer

    plant_code(folder, canary)
    set_config(folder, model_type="never-heard-of")
    with pytest.raises(InvalidRequest, match="without custom code"):
        TransformersScorer(resolve(str(folder)))
    assert not canary.exists()


def test_the_target_is_never_told_to_run_code(folder):
    from presift.target.sglang.arguments import SglangOptions, server_arguments

    arguments = server_arguments(SglangOptions(resolve(str(folder))))
    assert arguments["trust_remote_code"] is False and arguments["load_format"] == "safetensors"


def test_code_beside_a_tokenizer_is_not_run(tmp_path, canary):
    from tokenizers import Tokenizer, models

    folder = tmp_path / "tokenizer"
    folder.mkdir()
    Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]")).save(str(folder / "tokenizer.json"))
    (folder / "evil.py").write_text(f"open({str(canary)!r}, 'w')\nclass Tok: ...\n")
    config = {"tokenizer_class": "Tok", "auto_map": {"AutoTokenizer": ["evil.Tok", "evil.Tok"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert load_tokenizer(str(folder), 100).backend is not None
    assert not canary.exists()
