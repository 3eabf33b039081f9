"""Comparison of routes with `full` on a file of prompts: `presift eval`."""
