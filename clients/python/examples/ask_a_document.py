"""Ask a question about a text file, and see what presift did: python ask_a_document.py FILE QUESTION [ADDRESS]"""

import sys
from pathlib import Path

from presift_client import Client, Decision, Delta, PresiftError


def main(path: str, question: str, address: str = "127.0.0.1:50051") -> int:
    content = [
        {"text": Path(path).read_text(encoding="utf-8") + "\n\n"},  # may be compressed
        {"text": question, "protected": True},  # never dropped
    ]
    messages = [
        {"role": "system", "content": "Answer from the document, in one sentence."},  # never dropped
        {"role": "user", "content": content},
    ]
    with Client(address) as client:
        try:
            for event in client.stream(messages=messages, max_prompt_tokens=512, max_new_tokens=48, deadline_s=300):
                if isinstance(event, Delta):
                    print(event.text, end="", flush=True)
                elif isinstance(event, Decision):
                    print(f"{event.route}, kept {event.kept_tokens} of {event.prompt_tokens}: {event.detail}")
                else:
                    print(f"\nfirst token after {event.ttft_ms:.0f} ms")
        except PresiftError as error:
            print(f"{error.code.name}: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]) if len(sys.argv) in (3, 4) else __doc__)
