"""Measure, and repair, what cross-lingual alignment does to a language model.

A plugin for EleutherAI's lm-evaluation-harness. Importing this package is cheap on purpose: nothing heavy is imported
until it is needed, because the harness plugin is looked up at interpreter start.
"""

__version__ = "0.1.0"
