"""How many drafts, targets and orchestrators a load needs. Pure, but for reading config.json."""
