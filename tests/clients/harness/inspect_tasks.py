"""Inspect's tasks: a plain answer, and one that needs a tool's result."""

from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import match
from inspect_ai.solver import generate, use_tools
from inspect_ai.tool import Tool, tool


@tool
def add() -> Tool:
    async def execute(a: int, b: int) -> str:
        """Add two integers.

        Args:
            a: The first.
            b: The second.
        """
        return str(a + b)

    return execute


@task
def plain() -> Task:
    return Task(dataset=[Sample(input="Hi", target="Hello there.")], solver=generate(), scorer=match())


@task
def with_a_tool() -> Task:
    question = Sample(input="What is 2 + 3?", target="The tool said 5.")
    return Task(dataset=[question], solver=[use_tools(add()), generate()], scorer=match())
