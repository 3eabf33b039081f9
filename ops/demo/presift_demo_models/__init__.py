"""The demo models: where they come from and how they become Hugging Face folders. Import the modules by name."""
