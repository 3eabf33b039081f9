"""`<document>` tags in a string become document parts; the text does not change."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from presift.v1 import orchestrator_pb2
from presift_client import InvalidRequest, document_parts
from presift_client.requests import generate_request


def marked(text):
    return [(part["text"], part["document"]) for part in document_parts(text)]


def test_documents_and_the_text_around_them():
    text = "Read: <document>one\n</document>\n<document index='2'>two</document> Which?"
    assert marked(text) == [
        ("Read: <document>", False),
        ("one\n", True),
        ("</document>\n<document index='2'>", False),
        ("two", True),
        ("</document> Which?", False),
    ]


@pytest.mark.parametrize("text", ["no tag", "<documents>x</documents>", "< document>", "a <documentation>"])
def test_text_without_documents(text):
    assert marked(text) == [(text, False)]


def test_an_empty_document_is_a_document():
    assert ("", True) in marked("<document></document>why?")  # so that nothing else may be dropped


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a</document>", "character 1 has no opening tag"),
        ("<document>a", "character 10 has no </document>"),
        ("<document>a<document>b</document></document>", "character 11 is inside another document"),
        ("<document></document></document>", "character 21 has no opening tag"),
    ],
)
def test_unbalanced_and_nested_tags_are_refused(text, words):
    with pytest.raises(ValueError, match=words):
        document_parts(text)


# Of any Unicode but lone surrogates.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(lambda text: "<" not in text)


@given(st.lists(st.tuples(TEXT, TEXT), max_size=4), TEXT)
def test_any_text(pairs, rest):
    text = "".join(f"{before}<document>{inner}</document>" for before, inner in pairs) + rest
    parts = document_parts(text)
    assert "".join(part["text"] for part in parts) == text
    assert [part["text"] for part in parts if part["document"]] == [inner for _, inner in pairs]
    request = generate_request(None, {"messages": [{"role": "user", "content": parts}]})
    read = orchestrator_pb2.GenerateRequest.FromString(request.SerializeToString())
    assert "".join(part.text for part in read.prompt.chat.messages[0].parts) == text


def test_lone_surrogates_are_refused_before_they_are_sent():
    with pytest.raises(InvalidRequest, match="surrogate"):
        generate_request(
            None, {"messages": [{"role": "user", "content": document_parts("<document>\ud800</document>")}]}
        )
