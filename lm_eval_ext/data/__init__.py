"""Data sources, the questions and training rows built from them, and the metrics of tasks."""
