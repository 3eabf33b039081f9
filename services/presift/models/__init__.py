"""Finds, checks and identifies model folders in Hugging Face format. Import the modules by name."""
