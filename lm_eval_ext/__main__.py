"""`python -m lm_eval_ext`, also under `accelerate launch -m lm_eval_ext eval ...`."""

from lm_eval_ext.cli import main

if __name__ == "__main__":
    main()
