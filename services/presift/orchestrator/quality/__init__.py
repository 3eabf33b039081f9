"""Quality guard: answers a few compressed requests in full as well, and switches off a route that differs too much."""
