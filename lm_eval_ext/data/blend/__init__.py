"""Decontextualised BLEnD: what a culture answers, asked in its language with no country named.

`load` is what the task files call. Each item has four options, each tied to countries; gold is the answer of the country
whose culture stands for the language (`lm_eval_ext.languages`). How options are chosen: `items`; which questions are held
out: `splits`; what may not be named: `leaks`; what was built and what was not: `report`. What is built derives from BLEnD
and is CC-BY-SA-4.0.
"""

from lm_eval_ext.data.blend.dataset import documents, load, pairs
from lm_eval_ext.data.blend.report import audit, check, counts, fingerprint

__all__ = ["audit", "check", "counts", "documents", "fingerprint", "load", "pairs"]
