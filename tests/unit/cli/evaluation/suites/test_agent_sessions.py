"""Recorded sessions become chats of the wanted lengths."""

import pytest

from presift.cli.evaluation.suites import agent_sessions


async def test_as_many_turns_as_fit(lines, counter):
    """Ten words a message: 9 of s2's, 19 of 31 of s1's, 19 of 21 of s3's fit 200 words less four for the answer."""
    found = await lines(agent_sessions.SUITE, lengths=(200,), per_task=5)
    assert [(line["id"], line["kind"], len(line["messages"])) for line in found] == [
        ("s1-200", "codex", 19), ("s3-200", "claude", 19),
    ]  # fmt: skip
    assert all(line["messages"][-1]["role"] == "user" and set(line) == {"id", "kind", "messages"} for line in found)


async def test_a_session_that_is_short_is_whole_at_short_lengths(lines):
    found = await lines(agent_sessions.SUITE, lengths=(100, 180), per_task=5)
    assert [(line["id"], len(line["messages"])) for line in found] == [
        ("s1-100", 9), ("s2-100", 9), ("s3-100", 9), ("s1-180", 17), ("s2-180", 9), ("s3-180", 17),
    ]  # fmt: skip


async def test_few_of_each_agent(lines):
    found = await lines(agent_sessions.SUITE, lengths=(100,), per_task=1)
    assert [line["id"] for line in found] == ["s1-100", "s3-100"]
    found = await lines(agent_sessions.SUITE, lengths=(100,), tasks=("claude",))
    assert [line["id"] for line in found] == ["s3-100"]


async def test_no_turn_fits(lines):
    for length in (9, 5):
        with pytest.raises(ValueError, match=f"no session of codex, claude has half of {length} tokens"):
            await lines(agent_sessions.SUITE, lengths=(length,))


async def test_sessions_that_are_all_too_short_are_an_error(lines):
    with pytest.raises(ValueError, match="no session of claude has half of 5000 tokens"):
        await lines(agent_sessions.SUITE, lengths=(5000,), tasks=("claude",))


async def test_an_unknown_agent_is_named(lines):
    with pytest.raises(ValueError, match="tasks has 'cody'; each must be one of codex, claude"):
        await lines(agent_sessions.SUITE, tasks=("cody",))


async def test_an_answer_that_leaves_no_room(lines):
    with pytest.raises(ValueError, match="max-new-tokens is 40; it must be less than 40, the shortest of lengths"):
        await lines(agent_sessions.SUITE, answer_tokens=40)
