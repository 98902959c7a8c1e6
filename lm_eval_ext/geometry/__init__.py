"""Geometry of a model's languages, layer by layer: its steering vectors, its questions, its parallel sentences."""
