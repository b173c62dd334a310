#!/usr/bin/env bash
# Everything that wants one GPU, most important first, each part within a time of its own:
#   benchmarks/run_h100.sh OUT [part ...]
# parts: check tune tune_fp8 model8 model06 attention profile tests fp8 lora
# OUT gets logs and results; results also go to benchmarks/results, tuned configurations to kernels/.
set -u
cd "$(dirname "$0")/.."
out=${1:?where to write}
shift
mkdir -p "$out"
python=${PYTHON:-python3}
export PYTHONPATH=src:. PYTHONUNBUFFERED=1 TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-/tmp/triton}
results=benchmarks/results/engine_h100.json
# Without the project's settings: these want plugins that a GPU machine may lack.
pytest="$python -m pytest -c /dev/null --rootdir=. --import-mode=importlib -p no:cacheprovider -q"

part() { # name, seconds, command ...
    local name=$1 seconds=$2 began=$SECONDS
    shift 2
    timeout -k 5 "$seconds" "$@" >"$out/$name.log" 2>&1
    echo "== $name: rc $? after $((SECONDS - began)) s"
    grep -v '^{' "$out/$name.log" | tail -n 6 | cut -c 1-300
    grep '^{' "$out/$name.log" | cut -c 1-260
    cp -f "$results" "$out/" 2>/dev/null
    for configs in kernels/*/configs; do
        [ -d "$configs" ] && mkdir -p "$out/$configs" && cp -f "$configs"/*.json "$out/$configs/"
    done
}

for name in "${@:-check}"; do
    case $name in
        check) part check 150 $pytest -x tests/gpu/test_engine_gpu.py ;;
        tune) part tune 280 "$python" -m benchmarks.tune_kernels --only decode,extend,linear ;;
        tune_fp8) part tune_fp8 120 "$python" -m benchmarks.tune_kernels --only decode_fp8,extend_fp8 ;;
        model8) part model8 240 "$python" -m benchmarks.engine --model llama8b --out "$results" ;;
        model06) part model06 150 "$python" -m benchmarks.engine --model qwen06b --out "$results" ;;
        attention) part attention 100 "$python" -m benchmarks.attention_kernels --out "$results" ;;
        profile) part profile8 90 "$python" -m benchmarks.engine --model llama8b --measure profile \
            --batches 1,64,256 --out "$results"
            part profile06 70 "$python" -m benchmarks.engine --model qwen06b --measure profile \
                --batches 1,64 --out "$results" ;;
        tests) part tests 300 $pytest tests/gpu ;;
        fp8) part fp8 90 "$python" -m benchmarks.engine --model llama8b --measure itl \
            --batches 64 --kv-cache-dtype fp8_e4m3 --out "$results" ;;
        lora) part lora 400 "$python" -m benchmarks.lora --out "$out/lora_h100.json" ;;
        *) echo "unknown part: $name" ;;
    esac
done
