"""Which model it is: digests that move with the contents and with nothing else."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from presift.core.errors import InvalidRequest
from presift.models.folder import resolve, weights_digest


@pytest.fixture
def folder(tiny_model, tmp_path):
    return shutil.copytree(tiny_model("tinyq"), tmp_path / "copy")


def test_the_same_contents_have_the_same_revision_wherever_they_lie(folder, tiny_model):
    here, there = resolve(str(folder)), resolve(str(tiny_model("tinyq")))
    assert here.revision == there.revision
    assert (here.id, there.id) == ("copy", "tinyq")
    assert here.tokenizer_fingerprint == ""


def test_any_changed_tensor_changes_the_revision(folder):
    before, tensors = weights_digest(folder), load_file(folder / "model.safetensors")
    for name in tensors:
        changed = tensors | {name: tensors[name] + np.float32(1e-3)}
        save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
        assert weights_digest(folder) != before, name


def test_a_changed_setting_changes_the_revision(folder):
    before = weights_digest(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rope_theta": 5.0}))
    assert weights_digest(folder) != before


def test_a_renamed_shard_changes_the_revision_and_other_files_do_not(folder):
    before = weights_digest(folder)
    (folder / "README.md").write_text("hello")
    assert weights_digest(folder) == before
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    assert weights_digest(folder) != before


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_folder_without_config_or_safetensors_is_refused(folder, missing):
    (folder / missing).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"a pickle, which is never read")
    with pytest.raises(InvalidRequest, match="safetensors"):
        resolve(str(folder))


def test_a_hub_id_that_cannot_be_reached_is_refused_by_name(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InvalidRequest, match="no-such/model"):
        resolve("no-such/model")


@pytest.mark.pair
def test_the_demo_pair_shares_one_fingerprint(presift_home):
    folders = [presift_home / "models" / f"qwen2.5-coder-{size}-instruct" for size in ("0.5b", "1.5b")]
    small, large = (resolve(str(folder)) for folder in folders)
    assert small.tokenizer_fingerprint == large.tokenizer_fingerprint
    assert small.revision != large.revision
