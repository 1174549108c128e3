#!/usr/bin/env bash
# For a GPU that is there for some minutes only: its tests, its speed, then studies in order of worth.
#
#     LSEXP_DATA_DIR=... LSEXP_RUNS_DIR=... bash scripts/gpu/loan.sh OUT [SECONDS] [PART ...]
#
# SECONDS (default 560) is when packing begins, which takes half a minute. PARTs are tests, bench and studies (all three). Needs no network where the packages and the data
# are there. Everything resumes: what the time does not suffice for has its checkpoints, so with the
# same LSEXP_RUNS_DIR the next loan goes on from there. OUT gets logs, the figures of the bench, the
# studies' tables and figures, and each run's folder packed (AlexNet's are 8 MB, or 3 unfinished).
set -u
cd "$(dirname "$0")/../.."
out=$(mkdir -p "$1" && cd "$1" && pwd)
limit=${2:-560}
parts=${*:3}
[ -n "$parts" ] || parts="tests bench studies"
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1 OMP_NUM_THREADS=2 LSEXP_OUT_DIR=$out
export LSEXP_RUNS_DIR=${LSEXP_RUNS_DIR:-$PWD/runs}
python=${PYTHON:-python3}
if [ "${DEVICE:=cuda}" = cuda ]; then # DEVICE=cpu tries the script itself
    nvidia-smi --query-gpu=name,driver_version,clocks.sm,power.draw --format=csv >"$out/gpu.csv"
fi

# In order of worth. On an H200 six runs of AlexNet make 500,000 images a second together, so that
# the first takes 3.3 minutes (a third of the paper's 390,000 steps) and the second 10.
studies=(
    "sweep eps recipe=cifar10_alexnet budget=paper train.steps=130000 precision=bf16 eps=0,0.1 seeds=3"
    "sweep eps recipe=cifar10_alexnet budget=paper precision=bf16 eps=0,0.1 seeds=3"
    "sweep calibration recipe=cifar100_resnet56 budget=paper precision=bf16 eps=0,0.05 seeds=3"
    "sweep information recipe=cifar10_resnet56 budget=paper precision=bf16 eps=0,0.1 seeds=3"
)

run() { # NAME COMMAND...: with what is left of the time, its output in NAME.log
    local left=$((limit - SECONDS)) name=$1 began=$SECONDS
    shift
    [ "$left" -gt 5 ] || { echo "$name: no time left"; return 1; }
    timeout -s TERM -k 20 "$left" "$@" >"$out/$name.log" 2>&1
    local code=$?
    echo "$name: ended with $code after $((SECONDS - began)) s"
    tail -4 "$out/$name.log" | cut -c1-200
    return "$code"
}

for part in $parts; do
    case $part in
    tests)
        run tests "$python" -m pytest -q -p no:cacheprovider tests/training/test_bank.py \
            tests/models/test_gpu_kernels.py
        ;;
    bench)
        # Some ten seconds a figure, five figures a recipe: not all of them.
        run bench "$python" -m lsexp.cli bench device="$DEVICE" seconds=2 \
            "${BENCH:-recipe=mnist_mlp,cifar10_alexnet,cifar10_resnet56_thin,cifar10_resnet56}"
        ;;
    studies)
        for number in "${!studies[@]}"; do
            # shellcheck disable=SC2086
            run "study-$number" "$python" -m lsexp.cli ${studies[$number]} device="$DEVICE" \
                artifacts.tensorboard=false artifacts.checkpoint_seconds=60 ${STUDY:-} || break
        done
        (cd "$LSEXP_RUNS_DIR" 2>/dev/null && for folder in */; do
            tar czf "$out/${folder%/}.tgz" "$folder"
        done)
        ;;
    *) echo "$part: tests, bench or studies"; exit 2 ;;
    esac
done
