import random
import re
from collections import Counter

import answer_tasks
import pytest
from answer_filler import function, function_names, prose
from answer_tasks import FORMS, KINDS, SERIES, Question, documents, make


def count(text: str) -> int:
    """Words and single other characters: near enough to tokens, and no model is needed."""
    return len(re.findall(r"\w+|\S", text))


SHORT = [(form, seed) for tokens, form, seed in SERIES if tokens == 2000]


def test_there_are_enough_questions_of_each_kind():
    kinds = Counter(question.kind for document in documents(count) for question in document.questions)
    assert set(kinds) == set(KINDS)
    assert min(kinds.values()) >= 10
    assert kinds.total() >= 80


def test_the_names_of_the_questions_are_distinct():
    names = [document.name(question) for document in documents(count) for question in document.questions]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(("form", "seed"), SHORT)
def test_a_document_is_a_pure_function_of_form_length_and_seed(form, seed):
    assert make(form, 2000, seed, count) == make(form, 2000, seed, count)
    assert make(form, 2000, seed, count) != make(form, 2000, seed + 3, count)


@pytest.mark.parametrize(("tokens", "form", "seed"), SERIES)
def test_a_document_is_as_long_as_asked_for(tokens, form, seed):
    assert tokens <= count(make(form, tokens, seed, count).text) <= tokens + 80


@pytest.mark.parametrize(("form", "seed"), SHORT)
def test_every_fact_stands_in_the_document_and_not_in_its_question(form, seed):
    document = make(form, 2000, seed, count)
    for question in document.questions:
        found = Question(question.kind, "", question.facts).stated(document.text.replace(". ", ".\n"))
        assert question.stated(question.text) == []
        if question.kind != answer_tasks.CALL_SITES:
            # A total is counted, and stands nowhere.
            assert len(found) == len([fact for fact in question.facts if fact[0] != "total"])


@pytest.mark.parametrize(("form", "seed"), SHORT)
def test_the_number_of_a_fact_comes_once_in_its_document(form, seed):
    document = make(form, 2000, seed, count)
    facts = {fact for question in document.questions for fact in question.facts}
    numbers = [word for fact in facts for word in fact if len(word) == 3]
    assert len(set(numbers)) == len(numbers)
    assert all(len(re.findall(rf"\b{number}\b", document.text)) == 1 for number in numbers if number.isdigit())


@pytest.mark.parametrize("setting", range(3))
def test_twelve_facts_are_asked_for_with_and_without_their_names(setting):
    questions = {question.kind: question for question in make("streets", 2000, setting, count).questions}
    open_question, named = questions["twelve facts"], questions["twelve named"]
    assert set(named.facts) == set(open_question.facts)
    assert all(name in named.text and name not in open_question.text for name, _ in named.facts)
    # The order of the text would help.
    assert named.facts != open_question.facts


@pytest.mark.parametrize("setting", range(3))
def test_the_filler_has_no_digits_and_no_words_of_facts(setting):
    words = {
        word.lower()
        for _, form, seed in SERIES
        if form in FORMS and seed % 3 == setting
        for question in make(form, 2000, seed, count).questions
        for fact in question.facts
        for word in fact
    }
    filler = prose(random.Random(0), setting)
    text = " ".join(next(filler) for _ in range(2000)).lower()
    assert not re.search(r"\d", text)
    assert not words & set(re.findall(r"\w+", text))


def test_functions_of_the_filler_are_valid_and_call_nothing_that_is_asked_for():
    dice = random.Random(0)
    names = function_names(dice)
    source = "\n\n".join(function(dice, next(names)) for _ in range(200))
    compile(source, "filler", "exec")
    assert not re.search(r"\d\d|reserve_stock|push_notice|open_ledger", source)


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("1. Amber Lane: 1,204 lamps\n2. Birch Lane: 77", [0, 1]),
        ("| BIRCH | 77 |", [1]),
        ("Amber: 77\nBirch: 1204", []),
        ("Amber: 12045", []),
        ("Total: **2**", [2]),
        ("Total: 12", []),
        ("", []),
    ],
)
def test_a_fact_is_stated_by_one_line_that_has_all_its_words(answer, found):
    question = Question("six facts", "", (("Amber", "1204"), ("Birch", "77"), ("total", "2")))
    assert question.stated(answer) == found
