#!/bin/sh
# A first look at an installed package, in an empty folder: what a new user does.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
lm-eval-ext --version
lm-eval-ext doctor
lm-eval-ext init my-eval/
lm_eval --model steered-hf --model_args dtype=float32 --tasks transfer_mini_ko_cloze,localization_mini_ko_cloze --limit 2 \
    --output_path results/base --log_samples
lm-eval-ext plane results --baseline base --out plane.html --json > plane.json
python -c 'import json; assert json.load(open("plane.json"))["baseline"] == "base"'
