"""Ask one document many questions at once: python many_questions.py FILE QUESTION QUESTION ... [--address HOST:PORT]

The first question goes alone, so that the target has read the document when the others come: with `max_kv_tokens` each
of them reads only what chooses its own KV (`cached`), and holds a share of what the whole document would.
"""

import argparse
import asyncio
import sys
from pathlib import Path

from presift_client import AsyncClient, Generation, PresiftError


async def ask(client: AsyncClient, document: str, question: str, max_kv_tokens: int) -> Generation:
    """One answer; the document comes first and is the same to the letter, so that its KV is found again."""
    content = [{"text": document + "\n\n", "document": True}, {"text": question}]
    messages = [
        {"role": "system", "content": "Answer from the document, in one sentence."},
        {"role": "user", "content": content},
    ]
    return await client.generate(messages=messages, max_kv_tokens=max_kv_tokens, max_new_tokens=48, deadline_s=300)


def show(question: str, answer: Generation | BaseException) -> bool:
    """Prints one answer; whether it is one."""
    if isinstance(answer, PresiftError):
        print(f"\n{question}\n  {answer.code.name}: {answer}", file=sys.stderr)
        return False
    if isinstance(answer, BaseException):
        raise answer
    decision, usage = answer.decision, answer.usage
    read = f"read {usage.kept_tokens} of {usage.prompt_tokens} tokens, {usage.cached_tokens} of them cached"
    print(f"\n{question}\n  {answer.text.strip()}\n  [{decision.route}: {read}, {usage.kv_tokens} KV tokens held]")
    return True


async def run(told: argparse.Namespace) -> int:
    document = told.file.read_text(encoding="utf-8")
    places = asyncio.Semaphore(told.concurrency)

    async def one(question: str) -> Generation:
        async with places:
            return await ask(client, document, question, told.max_kv_tokens)

    async with AsyncClient(told.address) as client:
        first = await asyncio.gather(one(told.questions[0]), return_exceptions=True)
        others = await asyncio.gather(*map(one, told.questions[1:]), return_exceptions=True)
    shown = [show(*each) for each in zip(told.questions, [*first, *others], strict=True)]
    return 0 if all(shown) else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("questions", nargs="+", metavar="QUESTION")
    parser.add_argument("--max-kv-tokens", type=int, default=512, help="what each may hold (default: 512)")
    parser.add_argument("--concurrency", type=int, default=16, help="questions at once (default: 16)")
    parser.add_argument("--address", default="127.0.0.1:50051")
    return asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
