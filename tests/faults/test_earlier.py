"""Which earlier version is taken, and what makes two answers differ."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from .versions import EARLIER, NoEarlierVersion, differences, earlier_commit, git_environment


def git(root: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false", "-c", "tag.gpgsign=false")
    command = ["git", "-C", str(root), *identity, *arguments]
    environment = git_environment() | {"GIT_CONFIG_GLOBAL": os.devnull}
    return subprocess.run(command, capture_output=True, check=True, text=True, env=environment).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Three commits, the first of which is tagged; the last one is too, as at a release."""
    root = tmp_path / "whole"
    root.mkdir()
    git(root, "init", "--quiet")
    for tag in ("v1", "", "v2"):
        git(root, "commit", "--quiet", "--allow-empty", "-m", "a commit")
        if tag:
            git(root, "tag", tag)
    return root


def test_the_newest_tag_before_this_commit_is_taken_unless_a_ref_is_named(repository: Path) -> None:
    assert earlier_commit(root=repository) == git(repository, "rev-parse", "v1")
    assert earlier_commit("HEAD~1", repository) == git(repository, "rev-parse", "HEAD~1")


def test_a_shallow_clone_says_what_it_lacks(repository: Path, tmp_path: Path) -> None:
    shallow = tmp_path / "shallow"
    git(tmp_path, "clone", "--quiet", "--depth=1", repository.as_uri(), str(shallow))
    with pytest.raises(NoEarlierVersion, match=f"no commit {EARLIER}: the clone is shallow"):
        earlier_commit(root=shallow)
    with pytest.raises(NoEarlierVersion, match=r"no commit v0\.9$"):
        earlier_commit("v0.9", repository)


def test_a_copy_without_history_says_so(tmp_path: Path) -> None:
    with pytest.raises(NoEarlierVersion, match=r"has no history: .*not a git repository"):
        earlier_commit(root=tmp_path)


@pytest.mark.parametrize(
    ("one", "other", "places"),
    [
        (
            {"text": "a", "id": 1, "draft_ms": 2.0},
            {"text": "a", "id": 2, "draft_ms": 3.0, "more": 1},
            [],
        ),  # a later version may say more
        ({"text": "a"}, {"text": "b"}, [".text"]),
        ({"tool_calls": []}, {"tool_calls": [{"name": "f"}]}, [".tool_calls[]"]),
        ({"choices": [{"n": 1}, {"n": 2}]}, {"choices": [{"n": 1}, {"n": 3}]}, [".choices[1].n"]),
    ],
)
def test_fields_that_both_have_must_be_equal(one: object, other: object, places: list[str]) -> None:
    assert [each.partition(":")[0] for each in differences(one, other)] == places
