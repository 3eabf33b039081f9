"""What a PromQL query asks for: names of metrics and labels. No parser: strings, ranges and groupings are taken out,
and of what is left a name before "(" is a function. Enough for queries as ours are: promtool says whether they are
PromQL at all.
"""

import re
from dataclasses import dataclass

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_RANGE = re.compile(r"\[[^\]]*\]")
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_MADE = re.compile(r'"(\w+)"(?:\s*,\s*"[^"]*"){3}\s*\)')  # what label_replace ends in
_SELECTOR = re.compile(r"([a-zA-Z_:][\w:]*)\s*(\{[^}]*\})?(?=\s*(\()?)")
_MATCHER = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
_KEYWORDS = {"and", "or", "unless", "bool", "offset", "inf", "nan", "on", "by"}


@dataclass(frozen=True, slots=True)
class Asked:
    """`selectors`: (metric, label names in its braces); `grouped`: labels that results are grouped by; `made`: by
    label_replace."""

    selectors: tuple[tuple[str, frozenset[str]], ...]
    grouped: frozenset[str]
    made: frozenset[str]


def asked(expr: str) -> Asked:
    """What `expr` asks for."""
    bare = _RANGE.sub("", _STRING.sub('""', expr))
    grouped = {label.strip() for found in _GROUPING.findall(bare) for label in found.split(",") if label.strip()}
    selectors = [
        (name, frozenset(_MATCHER.findall(braces)))
        for name, braces, call in _SELECTOR.findall(_GROUPING.sub("", bare))
        if not call and name not in _KEYWORDS
    ]
    return Asked(tuple(selectors), frozenset(grouped), frozenset(_MADE.findall(expr)))
