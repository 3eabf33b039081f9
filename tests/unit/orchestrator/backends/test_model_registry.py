"""Who stands behind the orchestrator: found, compared, and found again."""

import asyncio
from dataclasses import replace

import pytest

from presift.core.errors import DraftUnavailable, TargetUnavailable, VocabularyMismatch
from presift.core.plan import ModelInfo, Route
from presift.orchestrator.backends.model_registry import ModelRegistry, check_vocabulary
from presift.orchestrator.domain.ports import TargetInfo

DRAFT = ModelInfo("small", "r1", "f1", 2000, 4, 2, 1000)
TARGET = replace(DRAFT, id="large")


class Service:
    """Answers `info` with the given values in order, then with the last one. Errors are raised."""

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), 0

    async def info(self):
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def models(draft, target=None):
    return ModelRegistry(draft, target or Service(TargetInfo(TARGET, frozenset({Route.FULL}))), retry_s=0.001)


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def test_both_are_found():
    known = models(Service(DRAFT))
    assert (await known.connect()).model is TARGET
    assert known.known_draft() is DRAFT
    await known.aclose()


async def test_target_is_waited_for():
    target = Service(TargetUnavailable("no"), TargetUnavailable("no"), TargetInfo(TARGET, frozenset()))
    known = models(Service(DRAFT), target)
    await known.connect()
    assert target.asked == 3


async def test_draft_that_is_late_is_found():
    known = models(Service(DraftUnavailable("no"), DraftUnavailable("no"), DRAFT))
    await known.connect()
    with pytest.raises(DraftUnavailable):
        known.known_draft()
    await until(lambda: known.draft is DRAFT)
    await known.aclose()


async def test_draft_that_changed_is_found_again():
    newer = replace(DRAFT, revision="r2")
    known = models(Service(DRAFT, newer))
    await known.connect()
    known.find_draft_again()
    assert known.draft is None
    await until(lambda: known.draft is newer)
    await known.aclose()


async def test_many_callers_start_one_search():
    draft = Service(DRAFT, DraftUnavailable("no"))
    known = models(draft)
    await known.connect()
    for _ in range(20):
        known.find_draft_again()
    assert len([task for task in asyncio.all_tasks() if task.get_name() == "find draft"]) == 1
    await known.aclose()
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "find draft"]


async def test_draft_that_came_back_unfit_is_not_used():
    draft = Service(DRAFT, replace(DRAFT, tokenizer_fingerprint="f2"))
    known = models(draft)
    await known.connect()
    known.find_draft_again()
    await until(lambda: draft.asked >= 4)
    assert known.draft is None
    await known.aclose()


async def test_mismatch_at_start_is_refused():
    known = models(Service(replace(DRAFT, tokenizer_fingerprint="f2")))
    with pytest.raises(VocabularyMismatch) as refusal:
        await known.connect()
    assert {"f1", "f2"} <= set(refusal.value.details.values())
    assert all(word in refusal.value.message for word in ("small", "large", "f1", "f2"))


@pytest.mark.parametrize(
    ("draft", "target", "fits"),
    [
        ({}, {}, True),
        ({"vocabulary_size": 1024}, {}, True),  # padded embeddings, one tokenizer
        ({"tokenizer_fingerprint": "f2"}, {}, False),
        ({"tokenizer_fingerprint": ""}, {}, False),
        ({}, {"tokenizer_fingerprint": ""}, False),
        ({"tokenizer_fingerprint": ""}, {"tokenizer_fingerprint": ""}, True),
        ({"tokenizer_fingerprint": "", "vocabulary_size": 7}, {"tokenizer_fingerprint": ""}, False),
    ],
)
def test_vocabularies(draft, target, fits):
    pair = replace(DRAFT, **draft), replace(TARGET, **target)
    if fits:
        check_vocabulary(*pair)
    else:
        with pytest.raises(VocabularyMismatch):
            check_vocabulary(*pair)


async def test_cross_vocabulary_wants_the_draft_whose_tokenizer_we_have():
    target = Service(TargetInfo(TARGET, frozenset({Route.FULL})))
    foreign = replace(DRAFT, tokenizer_fingerprint="f2")
    known = ModelRegistry(Service(foreign), target, draft_fingerprint="f2", retry_s=0.001)
    await known.connect()
    assert known.known_draft() is foreign
    for unfit in (DRAFT, replace(DRAFT, tokenizer_fingerprint="")):  # the target's own vocabulary would be misread too
        wrong = ModelRegistry(Service(unfit), target, draft_fingerprint="f2", retry_s=0.001)
        with pytest.raises(VocabularyMismatch, match="draft_tokenizer") as refusal:
            await wrong.connect()
        assert refusal.value.details == {"orchestrator": "f2", "draft": unfit.tokenizer_fingerprint}


async def test_a_tokenizer_of_another_model_is_refused():
    target = Service(TargetInfo(TARGET, frozenset({Route.FULL})))
    wrong = ModelRegistry(Service(TARGET), target, "another fingerprint", retry_s=0.001)
    with pytest.raises(VocabularyMismatch, match="another fingerprint") as refusal:
        await wrong.connect()
    assert refusal.value.details["target"] == TARGET.tokenizer_fingerprint
    await ModelRegistry(Service(TARGET), target, TARGET.tokenizer_fingerprint, retry_s=0.001).connect()
