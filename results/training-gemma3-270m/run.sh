#!/bin/sh
# The runs and measurements of this folder: about 25 minutes on one CPU core, 5 GB of memory.
#   LM_EVAL_EXT_DATA=MIRROR sh run.sh FOLDER     (the mirror has instruct/, parallel/flores200, parallel/ntrex128)
set -e
folder=$1
data="$LM_EVAL_EXT_DATA/instruct"
mkdir -p "$folder"
cd "$folder"
lm-eval-ext data instruct mini --out mini.jsonl
lm-eval-ext data instruct "$data/oasst_en100_messages.jsonl" --tree-state '' --max-chars 700 --held-out 0.2 --out en.jsonl
lm-eval-ext data instruct "$data/oasst1_zh_sft.json" --lang zh --max-chars 200 --limit 100 --held-out 0.2 --out zh.jsonl
cat mini.jsonl en.jsonl zh.jsonl > all.jsonl
common="--data all.jsonl --steps 40 --learning-rate 5e-4 --batch-size 8 --max-length 192 --save-every 10 --log-every 4"
lm-eval-ext train mist $common --dtype bfloat16 --out mist
lm-eval-ext train midalign $common --dtype bfloat16 --pairs ntrex --temperature 0.002 --contrastive-batch-size 32 \
    --out midalign
lm-eval-ext train clo --steps 32 --batch-size 4 --learning-rate 5e-4 --max-length 192 --save-every 8 --log-every 4 \
    --dtype bfloat16 --out clo
lm-eval-ext train eval mist midalign clo --baseline base --baseline mist --data all.jsonl --max-pairs 200 --out measures.csv
