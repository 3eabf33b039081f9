"""The quality guard: a few compressed requests are answered by `full` too; a route that disagrees is switched off."""
