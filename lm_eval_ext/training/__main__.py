"""`python -m lm_eval_ext.training mist ...`, also under `accelerate launch -m`: the same as `lm_eval_ext train mist ...`."""

import runpy
import sys

if __name__ == "__main__":
    sys.argv.insert(1, "train")
    # By name: this package is below the commands and imports none of them.
    runpy.run_module("lm_eval_ext", run_name="__main__")
