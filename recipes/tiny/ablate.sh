#!/usr/bin/env bash
# Which supervision teaches a tiny student most, over three seeds; docs/distillation.md has the result. From the root.
set -euo pipefail
PATH=$PWD/.venv/bin:$PATH
for seed in 0 1 2; do
    folder=tiny/$seed
    [ -e "$folder/evaluation/ablation.json" ] && continue
    edge-distill traces "task:chain_sum?min_terms=3&max_terms=5&max_digits=1" --count 6000 --seed "$seed" --teacher solver: --out "$folder/solved.jsonl"
    python recipes/tiny/wandering_traces.py "$folder/solved.jsonl" "$folder/wandering.jsonl" --seed "$seed"
    edge-distill init-student edge_distill/demo/teacher --fresh --layers 3 --hidden 64 --ffn 96 --seed "$seed" --out "$folder/fresh"
    edge-distill distill recipes/tiny/granularity.yaml student="$folder/fresh" out="$folder/full" \
        "traces=[$folder/wandering.jsonl]" training.seed="$seed"
    edge-distill evaluate "$folder/full/student" --ablate granularity --items 300 --max-tokens 128 --at-once 64 --threads 1 \
        --tasks "task:chain_sum?min_terms=3&max_terms=5&max_digits=1" \
        --siblings "task:chain_sum?min_terms=6&max_terms=6&max_digits=1" --out "$folder/evaluation"
done
