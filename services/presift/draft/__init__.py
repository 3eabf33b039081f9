"""The draft service: reads a prompt with a small model and says which of its tokens matter."""
