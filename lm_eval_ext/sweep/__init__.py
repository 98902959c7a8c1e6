"""A grid of steering plans on the same questions, for little more than one evaluation.

`lm_eval_ext.sweep(tasks, vectors, ...)` is `run.sweep`.
"""

from lm_eval_ext._callable import make_callable

make_callable(__name__, "run", "sweep")
