"""Answer a question from a folder of text files: python rag_over_a_folder.py FOLDER QUESTION [--address HOST:PORT]

Retrieval uses SQLite's full-text index (BM25), in memory. With presift it can be generous: it sends many passages,
marked as documents, and the draft drops the parts that the question does not need. Their headings are never dropped.
"""

import argparse
import re
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

from presift_client import Client, Decision, Delta, PresiftError

PASSAGE_CHARACTERS = 2_000


def passages(text: str) -> Iterator[str]:
    """Paragraphs, joined up to PASSAGE_CHARACTERS; a longer paragraph is a passage of its own."""
    passage = ""
    for paragraph in re.split(r"\n\s*\n", text):
        if passage and len(passage) + len(paragraph) > PASSAGE_CHARACTERS:
            yield passage
            passage = ""
        passage += paragraph.rstrip() + "\n\n"
    if passage.strip():
        yield passage


def index(folder: Path, pattern: str) -> sqlite3.Connection:
    """An index of all passages of the files below `folder`."""
    database = sqlite3.connect(":memory:")
    database.execute("CREATE VIRTUAL TABLE passages USING fts5(file UNINDEXED, text, tokenize = 'porter unicode61')")
    for path in sorted(path for path in folder.rglob(pattern) if path.is_file()):
        text = path.read_text(encoding="utf-8", errors="replace")
        rows = [(str(path.relative_to(folder)), passage) for passage in passages(text)]
        database.executemany("INSERT INTO passages VALUES (?, ?)", rows)
    return database


def retrieve(database: sqlite3.Connection, question: str, count: int) -> list[tuple[str, str]]:
    """(file, passage) pairs, best first. A passage matches if it has any word of the question."""
    words = " OR ".join(f'"{word}"' for word in re.findall(r"\w+", question))
    query = "SELECT file, text FROM passages WHERE passages MATCH ? ORDER BY rank LIMIT ?"
    return database.execute(query, (words, count)).fetchall() if words else []


def messages(found: list[tuple[str, str]], question: str) -> list[dict]:
    """The prompt. Only the passages are marked as documents, so only they may be dropped."""
    content = []
    for number, (file, passage) in enumerate(found, 1):
        content += [{"text": f"[{number}] {file}\n"}, {"text": passage, "document": True}]
    system = "Answer from the passages, in a few sentences, and name the numbers of those that say it."
    return [{"role": "system", "content": system}, {"role": "user", "content": [*content, {"text": question}]}]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("question")
    parser.add_argument("--files", default="*.txt", help="which files (default: *.txt)")
    parser.add_argument("--passages", type=int, default=16, help="number of passages to send (default: 16)")
    parser.add_argument("--max-prompt-tokens", type=int, default=1024, help="limit of the prompt (default: 1024)")
    parser.add_argument("--address", default="127.0.0.1:50051")
    args = parser.parse_args()
    found = retrieve(index(args.folder, args.files), args.question, args.passages)
    if not found:
        print(f"no passage in {args.folder} has a word of the question", file=sys.stderr)
        return 1
    options = {"messages": messages(found, args.question), "max_prompt_tokens": args.max_prompt_tokens}
    try:
        with Client(args.address) as client:
            for event in client.stream(**options, max_new_tokens=128, deadline_s=300):
                if isinstance(event, Decision):
                    print(f"{len(found)} passages; {event.route}, kept {event.kept_tokens} of {event.prompt_tokens}")
                elif isinstance(event, Delta):
                    print(event.text, end="", flush=True)
    except PresiftError as error:
        print(f"{error.code.name}: {error}", file=sys.stderr)
        return 1
    print("\n" + "\n".join(f"[{number}] {file}" for number, (file, _) in enumerate(found, 1)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
