"""Figures and pages: theme, charts, templates. Knows nothing of models or of the plane."""
