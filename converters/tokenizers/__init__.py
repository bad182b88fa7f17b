"""From the vocabulary in a GGUF to a `tokenizer.json`: one file per kind of tokenizer."""
