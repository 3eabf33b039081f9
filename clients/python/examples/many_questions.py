"""Ask one document many questions at once: python many_questions.py FILE QUESTION QUESTION ... [--address HOST:PORT]

The first question is sent alone, so that the target has read the document when the others arrive. With `max_kv_tokens`
each of them then reads only the tokens that select its own KV (see `cached`), and holds a part of the document's KV.
"""

import argparse
import asyncio
import sys
from pathlib import Path

from presift_client import AsyncClient, Generation, PresiftError


async def ask(client: AsyncClient, document: str, question: str, max_kv_tokens: int) -> Generation:
    """One answer. The document comes first and is identical in every prompt, so that its KV is reused."""
    content = [{"text": document + "\n\n", "document": True}, {"text": question}]
    messages = [
        {"role": "system", "content": "Answer from the document, in one sentence."},
        {"role": "user", "content": content},
    ]
    return await client.generate(messages=messages, max_kv_tokens=max_kv_tokens, max_new_tokens=48, deadline_s=300)


def show(question: str, answer: Generation | BaseException) -> bool:
    """Print one answer or error. Returns whether it is an answer."""
    if isinstance(answer, PresiftError):
        print(f"\n{question}\n  {answer.code.name}: {answer}", file=sys.stderr)
        return False
    if isinstance(answer, BaseException):
        raise answer
    decision, usage = answer.decision, answer.usage
    read = f"read {usage.kept_tokens} of {usage.prompt_tokens} tokens, {usage.cached_tokens} of them cached"
    print(f"\n{question}\n  {answer.text.strip()}\n  [{decision.route}: {read}, {usage.kv_tokens} KV tokens held]")
    return True


async def run(args: argparse.Namespace) -> int:
    document = args.file.read_text(encoding="utf-8")
    slots = asyncio.Semaphore(args.concurrency)

    async def one(question: str) -> Generation:
        async with slots:
            return await ask(client, document, question, args.max_kv_tokens)

    async with AsyncClient(args.address) as client:
        first = await asyncio.gather(one(args.questions[0]), return_exceptions=True)
        others = await asyncio.gather(*map(one, args.questions[1:]), return_exceptions=True)
    shown = [show(*each) for each in zip(args.questions, [*first, *others], strict=True)]
    return 0 if all(shown) else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("questions", nargs="+", metavar="QUESTION")
    parser.add_argument("--max-kv-tokens", type=int, default=512, help="limit for each question (default: 512)")
    parser.add_argument("--concurrency", type=int, default=16, help="maximum concurrent questions (default: 16)")
    parser.add_argument("--address", default="127.0.0.1:50051")
    return asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
