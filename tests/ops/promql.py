"""The metrics and labels that a PromQL query names. This is no parser: it removes strings, ranges and groupings; of the
rest, a name before "(" is a function. That is enough for presift's queries; promtool checks their syntax.
"""

import re
from dataclasses import dataclass

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_RANGE = re.compile(r"\[[^\]]*\]")
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_MADE = re.compile(r'"(\w+)"(?:\s*,\s*"[^"]*"){3}\s*\)')  # the end of label_replace
_SELECTOR = re.compile(r"([a-zA-Z_:][\w:]*)\s*(\{[^}]*\})?(?=\s*(\()?)")
_MATCHER = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
_KEYWORDS = {"and", "or", "unless", "bool", "offset", "inf", "nan", "on", "by"}


@dataclass(frozen=True, slots=True)
class Asked:
    """`selectors`: (metric, label names in its braces); `grouped`: labels of the groupings; `made`: labels of
    label_replace."""

    selectors: tuple[tuple[str, frozenset[str]], ...]
    grouped: frozenset[str]
    made: frozenset[str]


def asked(expr: str) -> Asked:
    """The names in `expr`."""
    bare = _RANGE.sub("", _STRING.sub('""', expr))
    grouped = {label.strip() for found in _GROUPING.findall(bare) for label in found.split(",") if label.strip()}
    selectors = [
        (name, frozenset(_MATCHER.findall(braces)))
        for name, braces, call in _SELECTOR.findall(_GROUPING.sub("", bare))
        if not call and name not in _KEYWORDS
    ]
    return Asked(tuple(selectors), frozenset(grouped), frozenset(_MADE.findall(expr)))
