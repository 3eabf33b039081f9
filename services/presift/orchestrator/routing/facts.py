"""The facts of an answer: its numbers, identifiers, names and quoted strings. Pure: texts in, counts out.

A fact is a tuple of words, so that `cache_ttl` and `cache ttl`, `512MB` and `512 MB`, `1,234` and `1234` are the same.
A word is a run of letters or of digits; in scripts without spaces, each character is one. Case does not matter. Not
facts: the numbers of list items, and capitalised words that begin a sentence or that the answer also has in lower case.
But the word that begins a list item is one, because lists of names are more common there than sentences.
The time is linear in the length of both texts.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

Fact = tuple[str, ...]

# Longer chains and quoted strings are several facts: the time to look for a fact grows with its words.
_MOST_WORDS = 8

# Kana, Han and their compatibility forms.
_NO_SPACES = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_LETTERS = rf"(?:(?![{_NO_SPACES}])[^\W\d_])++"
_WORD = re.compile(rf"\d++|{_LETTERS}|[{_NO_SPACES}]")
# Words without a space between them: main.rs, cache_ttl, GPT-4, user@host, 512MB. A hyphen between two numbers is that
# of a date or a range, whose numbers are facts of their own.
_JOIN = r"(?:[_.@]|-(?!\d)|(?<!\d)-)?"
_PART = rf"(?:\d++|{_LETTERS})"
_CHAIN = re.compile(rf"{_PART}(?:{_JOIN}{_PART}){{0,{_MOST_WORDS - 1}}}")
_QUOTED = re.compile(r"\"([^\"\n]{1,80})\"|(?<!\w)'([^'\n]{1,80})'(?!\w)")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_LIST_ITEM = re.compile(r"^[ \t]*+(?:\d{1,3}[.)]|[-*+•])[ \t]++", re.MULTILINE)
_ITEM = "•"
_SENTENCE_END = re.compile("[.!?。]")
_QUOTES = str.maketrans(dict.fromkeys("“”„«»「」『』`", '"') | dict.fromkeys("\u2018\u2019\u201a", "'"))


@dataclass(frozen=True, slots=True)
class FactCount:
    """How many different facts the full answer has, and how many of them the compressed answer has too."""

    found: int = 0
    total: int = 0


NO_FACTS = FactCount()


def count_facts(compressed: str, full: str, *, is_cut: bool = False) -> FactCount:
    """Looks for the facts of `full` in `compressed`, in any order. `is_cut`: `full` may end within a word."""
    facts = _facts(_normalised(full), is_cut=is_cut)
    words = [*_words(_normalised(compressed))]
    there = set[Fact]()
    for length in {len(fact) for fact in facts}:
        there.update(tuple(words[start : start + length]) for start in range(len(words) - length + 1))
    return FactCount(len(facts & there), len(facts))


def _normalised(text: str) -> str:
    """One form of each character, kind of quote, number and list item."""
    text = unicodedata.normalize("NFKC", text).translate(_QUOTES)
    return _THOUSANDS.sub("", _LIST_ITEM.sub(_ITEM, text))


def _words(text: str) -> Iterator[str]:
    return (match[0].casefold() for match in _WORD.finditer(text))


def _facts(text: str, *, is_cut: bool) -> set[Fact]:
    facts = set[Fact]()

    def take(match: re.Match[str]) -> str:
        """Adds a quoted string; a long one is read as other text."""
        quoted = tuple(_words(match[1] or match[2]))
        if not 0 < len(quoted) <= _MOST_WORDS:
            return match[0]
        facts.add(quoted)
        return '""'

    text = _QUOTED.sub(take, text)
    lower = {match[0] for match in _WORD.finditer(text)}
    end = 0
    for match in _CHAIN.finditer(text):
        gap, chain = text[end : match.start()], match[0]
        begins_sentence = _ITEM not in gap and (not end or _SENTENCE_END.search(gap) is not None)
        end = match.end()
        if is_cut and end == len(text):
            break
        if _is_identifier(chain) or (_is_name(chain, begins_sentence) and chain.casefold() not in lower):
            facts.add(tuple(_words(chain)))
    return facts


def _is_identifier(chain: str) -> bool:
    """It has a digit, or words joined by other than a hyphen; not abbreviations such as e.g."""
    is_joined = any(sign in chain for sign in "_.@") and any(len(word) > 1 for word in _words(chain))
    return is_joined or any(character.isdigit() for character in chain)


def _is_name(chain: str, begins_sentence: bool) -> bool:
    """It is capitalised within a sentence, or has a capital within a word anywhere."""
    has_inner_capital = any(word[0][1:] != word[0][1:].lower() for word in _WORD.finditer(chain))
    return has_inner_capital or (len(chain) > 1 and chain[0].isupper() and not begins_sentence)
