"""What presift means: masks, policies, selection, errors. numpy only; no I/O, clock or environment."""
