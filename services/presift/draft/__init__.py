"""The draft service: scores the tokens of a prompt with a small model and selects the important ones."""
