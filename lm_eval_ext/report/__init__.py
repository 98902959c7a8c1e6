"""What results show, and what they do not, as one page. `lm_eval_ext.report(results, baseline)` is `build.report`."""

from lm_eval_ext._callable import make_callable

make_callable(__name__, "build", "report")
