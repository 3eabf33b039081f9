"""The cache of compressed prompts: stores, codec, and locks against duplicate work. Import the modules by name."""
