"""`python -m lm_eval_ext.training mist ...`: the commands of `lm-eval-ext train`, for `accelerate launch -m`."""

from lm_eval_ext.console import user_errors
from lm_eval_ext.training.command import app

if __name__ == "__main__":
    with user_errors():
        app(prog_name="python -m lm_eval_ext.training")
