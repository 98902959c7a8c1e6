"""The transformers backend: `--model steered-hf`."""
