"""Loading models, the embedded default model, and machine translation."""
