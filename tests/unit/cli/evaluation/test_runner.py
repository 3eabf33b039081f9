"""What answers depend on, and the progress that is shown."""

from dataclasses import replace

import pytest

from presift.cli.evaluation.arms import arms_of
from presift.cli.evaluation.dataset import Example
from presift.cli.evaluation.progress import AnswerProgress
from presift.cli.evaluation.runner import AnswerSettings, check_served
from presift_client import Info, Model, PolicyFile

TARGET, DRAFT = Model("target", "r1", 4000), Model("draft", "r1", 4000)
INFO = Info(DRAFT, TARGET, ("full", "spec_pc"), 4096)
SETTINGS = AnswerSettings()


@pytest.mark.parametrize(
    "changed",
    [
        AnswerSettings(max_new_tokens=8).digest(INFO, None),
        AnswerSettings(temperature=0.5).digest(INFO, None),
        AnswerSettings(compress_above=4096).digest(INFO, None),
        SETTINGS.digest(replace(INFO, target=replace(TARGET, revision="r2")), None),
        SETTINGS.digest(replace(INFO, draft=replace(DRAFT, head_profile="h")), None),
        SETTINGS.digest(replace(INFO, draft=None), None),
        SETTINGS.digest(replace(INFO, policy_file=PolicyFile("d", "t")), None),
        SETTINGS.digest(INFO, "acme"),
    ],
)
def test_other_answers_have_another_digest(changed):
    assert changed != SETTINGS.digest(INFO, None)


@pytest.mark.parametrize(
    "same",
    [
        AnswerSettings(deadline_s=5).digest(INFO, None),
        AnswerSettings(seed=5).digest(INFO, None),
        SETTINGS.digest(replace(INFO, cache_unavailable=True), None),
    ],
)
def test_equal_answers_have_the_same_digest(same):
    assert same == SETTINGS.digest(INFO, None)


def test_an_example_may_limit_its_own_answer():
    example = Example("1", {"prompt": "hi"}, max_new_tokens=8)
    assert AnswerSettings(max_new_tokens=64).of(example).options["max_new_tokens"] == 8
    assert AnswerSettings(max_new_tokens=64).of(replace(example, max_new_tokens=None)).options["max_new_tokens"] == 64


def test_the_seed_is_sent_with_samples_alone():
    assert "seed" not in AnswerSettings(seed=5).options
    assert AnswerSettings(temperature=0.5, seed=5).options["seed"] == 5


def test_a_route_that_is_not_served_is_named():
    check_served(arms_of("auto,spec_pc", "512"), INFO)
    with pytest.raises(ValueError, match="routes has 'spec_kv', which is not served here; served: full, spec_pc"):
        check_served(arms_of("spec_pc,spec_kv", "512"), INFO)


def test_progress_is_a_line_at_each_tenth(capsys):
    with AnswerProgress(30) as progress:
        for _ in range(30):
            progress.advance()
    with AnswerProgress(0):
        pass
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"{3 * tenth} of 30 answers" for tenth in range(1, 11)]
