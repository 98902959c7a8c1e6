"""Decontextualised BLEnD: cultural questions in the culture's language, with no country named.

Task files call `load`. Each item has four options that belong to countries; gold is the answer of the country that
represents the language (`lm_eval_ext.languages`). Options are chosen in `options`, items are built in `items`, questions are
split in `splits`, names of countries are detected by `leaks`, and `report` describes the build. The items derive from BLEnD
and are licensed CC-BY-SA-4.0.
"""

from lm_eval_ext.data.blend.dataset import documents, load, pairs, questions
from lm_eval_ext.data.blend.report import audit, check, counts, fingerprint

__all__ = ["audit", "check", "counts", "documents", "fingerprint", "load", "pairs", "questions"]
