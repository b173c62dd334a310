#!/usr/bin/env bash
# Trains both models at the same time on one GPU, then measures the larger one.
#
#   models/train/train_on_gpu.sh MINUTES SCRATCH_FOLDER RESULT_FOLDER
set -euo pipefail
cd "$(dirname "$0")/../.."
minutes=$1 scratch=$2 result=$3
cooldown=$(python3 -c "print($minutes * 0.45)")
# The tokenizer's own threads get in the way of the processes that make batches.
export PYTHONPATH=. TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1
train() {  # name, processes that make its batches
  python3 -u -m models.train.train --recipe "models/train/recipe_$1.json" \
    --tokenizer models/baton-tiny/tokenizer.json --out "$scratch/$1" --device cuda \
    --minutes "$minutes" --cooldown "$cooldown" --batch-tokens 32768 --data-workers "$2" \
    --report-every 150 --probe 16 --threads 2 > "$result/train_$1.log" 2>&1
  cp "$scratch/$1/hf/model.safetensors" "$result/$1.safetensors"
}
mkdir -p "$scratch" "$result"
train tiny 9 & tiny=$!
train draft 4 & draft=$!
wait "$tiny"
wait "$draft"
cp models/baton-tiny/{tokenizer,tokenizer_config,special_tokens_map}.json "$scratch/tiny/hf/"
python3 -m models.train.evaluate "$scratch/tiny/hf" --out "$result/accuracy.json" \
  --tasks copy tool_call add subtract multiply reverse json tool_answer
