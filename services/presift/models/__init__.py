"""Model folders in Hugging Face form: finding, checking and identifying them. Import the modules by name."""
