#!/usr/bin/env bash
# Evaluates a model and gates it before it is released.
#
#   examples/ci/pre-release.sh gate.yaml baselines/main --model_args pretrained=org/model
#
# What follows gate and baseline goes to `lm_eval`. The first run, without a baseline, writes one. Beside the results lie the
# verdicts (gate.json, gate.xml, gate.svg, comment.md) and run.zip, a bundle of the run to be signed and kept.
set -euo pipefail

# The exit status is the gate's: 0 pass, 1 fail, 2 inconclusive, 3 where there is no verdict.
if (($# < 2)); then
  echo "usage: $0 GATE.YAML BASELINE [arguments of lm_eval]" >&2
  exit 3
fi
gate=$1 baseline=$2
shift 2
tasks=${TASKS:-transfer_mini_cloze,localization_mini_cloze}
output=${OUTPUT:-results/candidate-$(date +%Y%m%d-%H%M%S)}

lm-eval-ext eval --model steered-hf --tasks "$tasks" --output_path "$output" --log_samples "$@" || {
  echo "not released: the evaluation failed" >&2
  exit 3
}
lm-eval-ext bundle "$output" -o "$output/run.zip" || exit 3

if [[ ! -e $baseline ]]; then
  echo "no baseline yet: this run becomes it"
  exec lm-eval-ext gate renew "$gate" --baseline "$baseline" --candidate "$output"
fi
status=0
lm-eval-ext gate "$gate" --baseline "$baseline" --candidate "$output" \
  --json "$output/gate.json" --junit "$output/gate.xml" --svg "$output/gate.svg" --comment "$output/comment.md" ||
  status=$?
case $status in
  0) echo "released: nothing speaks against it" ;;
  1) echo "not released: a loss is shown. If it is meant: lm-eval-ext gate renew $gate --baseline $baseline --candidate $output" ;;
  2) echo "not released: the items do not decide. Evaluate on more, or widen the margin" ;;
  *) echo "not released: baseline, candidate and rules do not fit together" ;;
esac
exit "$status"
