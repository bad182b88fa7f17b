"""One file per family of models: from its `config.json` and its names to a recipe."""
