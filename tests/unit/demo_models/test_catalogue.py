"""The pins are complete, and a wrong name is answered with the right ones."""

import subprocess
import sys

import pytest

from presift.core.errors import PresiftError
from presift_demo_models.catalogue import CATALOGUE, find_source
from presift_demo_models.errors import UnknownModel


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_source_is_pinned(name):
    source = find_source(name)
    assert all(requirement.count("==") == 1 for requirement in source.requirements)
    assert len(set(source.requirements)) == len(source.requirements)
    assert len(bytes.fromhex(source.gguf_sha256)) == 32
    assert source.gguf_bytes > 0


def test_unknown_name_lists_known_ones():
    with pytest.raises(UnknownModel, match=r"'smollm'.*qwen2\.5-coder-0\.5b-instruct.*smollm2-135m-instruct"):
        find_source("smollm")
    assert issubclass(UnknownModel, PresiftError)


def test_the_catalogue_is_light():
    code = "import sys, presift_demo_models.catalogue; print(sorted({'numpy', 'gguf', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=_environment())
    assert done.stdout.strip() == "[]"


def _environment():
    return {"PYTHONPATH": ":".join(path for path in sys.path if path)}
