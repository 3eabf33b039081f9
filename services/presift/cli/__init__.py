"""The `presift` command."""
