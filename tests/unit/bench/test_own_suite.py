"""The file of our own kinds of questions, as `presift eval` reads and scores it."""

import codecs
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import answer_tasks
import own_suite
import pytest
import retrieval_tasks

from presift.cli.evaluation.dataset import read_dataset

PER_KIND = 2
LENGTHS = [900, 1200]


def count(text):
    return len(re.findall(r"\w+|\S", text))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    file = tmp_path_factory.mktemp("suite") / "own.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in own_suite.lines(LENGTHS, PER_KIND, count)))
    return read_dataset(file)


def test_presift_eval_reads_every_kind_as_often_as_asked_for(dataset):
    kinds = {*answer_tasks.KINDS, *retrieval_tasks.KINDS}
    assert Counter(each.kind for each in dataset.examples) == dict.fromkeys(kinds, PER_KIND * len(LENGTHS))
    assert (dataset.ignored, dataset.repeated) == ((), 0)
    assert all(each.max_new_tokens for each in dataset.examples)


def test_a_right_answer_scores_1_and_wrong_values_0(dataset):
    for each in dataset.examples:
        right = "\n".join(f"- The name: {value}" for value in each.expected)
        # Every letter and digit is another one.
        wrong = re.sub(r"\d", lambda digit: str((int(digit[0]) + 1) % 10), codecs.encode(right, "rot13"))
        assert (each.score(right), each.score(wrong)) == (1.0, 0.0), each.id


def test_some_of_several_values_score_their_share(dataset):
    twelve = next(each for each in dataset.examples if each.kind == "twelve facts")
    assert twelve.score("\n".join(twelve.expected[:3])) == 0.25


def test_no_question_says_its_answer_and_the_last_part_is_the_question(dataset):
    for each in dataset.examples:
        document, question = each.prompt["messages"][-1]["content"]
        assert each.score(question["text"]) == 0.0 and question["protected"]
        assert count(document["text"]) >= min(LENGTHS)


def test_a_small_total_is_not_found_in_any_list():
    assert own_suite._value(("total", "6")) == "total: 6"
    assert own_suite._value(("Amber", "1204")) == "1204"


def test_the_script_writes_the_same_file_again():
    script = Path(own_suite.__file__)
    command = [sys.executable, script, "--lengths", "1k", "--per-kind", "1"]
    first, second = (subprocess.run(command, capture_output=True, check=True).stdout for _ in range(2))
    assert first == second and len(first.splitlines()) == len(answer_tasks.KINDS) + len(retrieval_tasks.KINDS)


@pytest.mark.parametrize("words", ["", "2m", "0", "2k,,4k"])
def test_a_wrong_length_is_refused_by_name(words):
    with pytest.raises(own_suite.argparse.ArgumentTypeError, match="must be a number of tokens"):
        own_suite._lengths(words)
