"""Low-rank adapters (LoRA): read, matched with a base model, written beside its artifact."""
