"""Compressed prompts by digest: stores, their codec, and the guards against a stampede. Import the modules by name."""
