"""`python -m lm_eval_ext.training mist ...`: the commands of `lm-eval-ext train`, for `accelerate launch -m`."""

from lm_eval_ext.commands.train import app
from lm_eval_ext.console import user_errors

if __name__ == "__main__":
    with user_errors():
        app(prog_name="python -m lm_eval_ext.training")
