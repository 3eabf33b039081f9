"""Named suites for `presift eval`: they write the JSONL that the command reads."""
