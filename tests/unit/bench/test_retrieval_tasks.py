import re
from collections import Counter

import pytest
from retrieval_tasks import KINDS, Task, fixed_set, is_right, make

KIND_AND_SEED = [(kind, seed) for kind in KINDS for seed in range(6)]


def count(text: str) -> int:
    """Words and single other characters: near enough to tokens, and no model is needed."""
    return len(re.findall(r"\w+|\S", text))


@pytest.mark.parametrize(("kind", "seed"), KIND_AND_SEED)
def test_a_task_is_a_pure_function_of_kind_length_and_seed(kind, seed):
    assert make(kind, 900, seed, count) == make(kind, 900, seed, count)
    assert make(kind, 900, seed, count) != make(kind, 900, seed + 6, count)


@pytest.mark.parametrize("tokens", [1400, 2100])
@pytest.mark.parametrize(("kind", "seed"), KIND_AND_SEED)
def test_a_document_is_as_long_as_asked_for(kind, seed, tokens):
    assert tokens <= count(make(kind, tokens, seed, count).document) <= tokens + 60


@pytest.mark.parametrize(("kind", "seed"), KIND_AND_SEED)
def test_the_values_stand_in_the_document_and_the_answer_not_in_the_question(kind, seed):
    task = make(kind, 2100, seed, count)
    assert all(value in task.document for value in task.answer.split(", "))
    assert not is_right(task, task.question)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["needle", "key_value"])
def test_what_is_asked_for_is_there_once(kind, seed):
    task = make(kind, 2100, seed, count)
    subject = task.question.removeprefix("What is the ").removesuffix("?")
    assert re.findall(rf"The {subject} is (\d+)\.", task.document) == [task.answer]


@pytest.mark.parametrize("seed", range(6))
def test_a_multi_key_answer_gives_both_values_in_the_order_of_the_question(seed):
    task = make("multi_key", 2100, seed, count)
    asked = re.search(r"of the (.+) and of the (.+), in this order", task.question)
    assert asked
    values = [re.findall(rf"the {thing} is (\d+)\.", task.document) for thing in asked.groups()]
    assert [len(found) for found in values] == [1, 1]
    assert task.answer == f"{values[0][0]}, {values[1][0]}"
    assert not is_right(task, values[0][0])
    assert not is_right(task, f"{values[1][0]}, {values[0][0]}")


@pytest.mark.parametrize("seed", range(6))
def test_code_runs_and_returns_the_answer(seed):
    task = make("code", 2100, seed, count)
    call = re.search(r"([\w.]+\(\))", task.question)
    assert call
    module: dict[str, object] = {}
    exec(task.document, module)
    assert str(eval(call[1], module)) == task.answer
    name = call[1].split(".")[0].removesuffix("()")
    assert len(re.findall(rf"^(?:def|class) {name}\b", task.document, re.M)) == 1


def test_the_fixed_set_holds_enough_of_each_kind_and_no_task_twice():
    tasks = fixed_set(count)
    assert len(tasks) >= 30
    assert len({task.name for task in tasks}) == len(tasks)
    assert all(Counter(task.kind for task in tasks)[kind] >= 3 for kind in KINDS)


def test_question_and_document_are_parts_of_their_own_in_the_chat():
    task = make("needle", 300, 0, count)
    document, question = task.chat.messages[-1].parts
    assert document.text == task.document
    assert question.text.strip().startswith(task.question)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("4213", True),
        ("The code is 4,213.", True),
        ("`4_213`", True),
        ("`return 4213`", True),
        ("", False),
        ("42 13", False),
        ("14213", False),
        ("4213 7", True),
        ("42130", False),
    ],
)
def test_an_answer_is_right_if_the_value_is_a_word_of_it(text, right):
    assert is_right(Task("needle", 1, 0, "", "", "4213"), text) is right


def test_words_are_compared_without_case():
    assert is_right(Task("needle", 1, 0, "", "", "Blue-Heron"), "It is the BLUE HERON!")
