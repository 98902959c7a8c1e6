"""The transfer-localization plane: changes against a baseline with paired intervals, as a picture and in sentences.

`lm_eval_ext.plane(runs, baseline=...)` is `shifts.measure`.
"""

from lm_eval_ext._callable import make_callable

make_callable(__name__, "shifts", "measure")
