"""What is not yet a GGUF becomes one: Hugging Face folders of safetensors. Never runs a model's code."""
