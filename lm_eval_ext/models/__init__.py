"""Harness models: `steered-hf`, its fast scorer, and the embedded default model."""
