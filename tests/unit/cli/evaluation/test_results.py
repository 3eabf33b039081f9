"""The file by which an interrupted evaluation continues."""

import pytest

from presift.cli.evaluation.results import Failure, Key, ResultFile

ONE, OTHER = Key("a" * 32, "full"), Key("b" * 32, "spec_pc 25%")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "results.jsonl"


def read(path, settings="s"):
    with ResultFile(path, settings) as file:
        return file.results


def test_what_was_written_is_read(path, answer):
    wanted = {ONE: answer("naïve\n“x”\u2028"), OTHER: Failure("PromptTooLong", "too long")}
    with ResultFile(path, "s") as file:
        for key, result in wanted.items():
            file.add(key, "q1", result)
        assert len(path.read_bytes().splitlines()) == 2  # there before the file is closed
        assert file.prompt_tokens == {ONE.prompt: 1000}
    assert read(path) == wanted


def test_results_of_other_settings_stay(path, answer):
    with ResultFile(path, "other") as file:
        file.add(ONE, "q1", answer("x"))
    with ResultFile(path, "s") as file:
        assert file.results == {}
        file.add(ONE, "q1", answer("y"))
    assert read(path)[ONE].text == "y" and read(path, "other")[ONE].text == "x"


@pytest.mark.parametrize("cut", [1, 5, 100, 300])
def test_an_interrupted_line_is_removed(path, answer, cut):
    with ResultFile(path, "s") as file:
        file.add(ONE, "q1", answer("x"))
        file.add(OTHER, "q1", answer("y"))
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    path.write_bytes(whole[: first + cut])
    with ResultFile(path, "s") as file:
        assert list(file.results) == [ONE]
        file.add(OTHER, "q1", answer("y"))
    assert path.read_bytes() == whole


def test_a_line_that_lacks_only_its_end_counts(path, answer):
    with ResultFile(path, "s") as file:
        file.add(ONE, "q1", answer("x"))
    whole = path.read_bytes()
    path.write_bytes(whole.rstrip(b"\n"))
    assert list(read(path)) == [ONE] and path.read_bytes() == whole


@pytest.mark.parametrize(
    "text", ['{"prompt": "hi"}', '{"prompt": "hi"}\n', "notes", "\n", "[]\n", "{}", '{"id": 1, "x']
)
def test_a_file_of_another_kind_is_left_as_it_is(path, text):
    path.write_text(text)
    with pytest.raises(ValueError, match="line 1 is not a result of presift eval"):
        read(path)
    assert path.read_text() == text
