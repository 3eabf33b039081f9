"""Downloads the demo models and converts them to Hugging Face folders. Import the modules by name."""
