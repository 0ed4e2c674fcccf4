#!/usr/bin/env bash
# The whole road as a chain of jobs, each waiting for the one before:
#
#   slurm/road.sh [--dry-run] CROPS OUT
#
#   cache (array) → teacher → student (distilled) → ladder, and an evaluation of each model
#
# CROPS is what augment_cache.crop wrote, or a folder per class; everything goes below OUT, on a disk that all nodes share.
# Prints the job ids. --dry-run submits nothing, and shows what would be submitted. Submit it again after a failure:
# every job goes on where it was. In the environment, each with options behind it:
#
#   CACHE="--size 96"   TEACHER="quick"   STUDENT="distill"   LADDER="small --target macs=1.0e6"
#   PARTS=4  NODES=1    parts of the cache (16%4: at most 4 at a time); nodes of the two trainings
#   EACH="--time=1:00:00"   more options of sbatch, for all jobs
set -euo pipefail
dry=
if [ "${1:-}" = --dry-run ]; then
  dry=yes
  shift
fi
if [ $# -ne 2 ]; then
  sed -n '2,/^set -euo/{/^set/d;s/^# \{0,1\}//p}' "$0" >&2
  exit 2
fi
crops=$(realpath -m "$1")
out=$(realpath -m "$2")
cd "$(dirname "$(realpath "$0")")/.."
site=${TACOPRESS_SITE:-slurm/site.env}
# shellcheck source=slurm/site.env
. "$site"
[ -n "$dry" ] || [ -d "$crops" ] || {
  echo "slurm/road.sh: there is no folder $crops" >&2
  exit 2
}
# Words of the settings are options, so they are split where they have spaces.
# shellcheck disable=SC2206
cache=(${CACHE:---size 96}) teacher=(${TEACHER:-quick}) student=(${STUDENT:-distill}) each=(${EACH:-}) \
  ladder=(${LADDER:-small --target macs=1.0e6})
parts=${PARTS:-4} limit='' nodes=${NODES:-1}
if [[ $parts == *%* ]]; then limit=%${parts#*%} parts=${parts%%%*}; fi
alone=(${SBATCH_GPUS_PER_NODE:+--gpus-per-node=1})

# submit NAME AFTER SCRIPT_AND_OPTIONS: queues a job that waits for another, and prints its id. Options of sbatch come
# before the script.
submit() {
  local name=$1 after=$2 log=%x-%j.log
  shift 2
  if [ "$name" = cache ]; then log=%x-%A_%a.log; fi
  local command=(sbatch --parsable "--job-name=$name" "--output=$out/logs/$log")
  if [ -n "$after" ]; then command+=("--dependency=afterok:$after" --kill-on-invalid-dep=yes); fi
  command+=(${each[@]+"${each[@]}"} "$@")
  if [ -n "$dry" ]; then
    printf '%q ' "${command[@]}" >&2
    printf '\n' >&2
    printf 'ID_OF_%s\n' "$name"
    return
  fi
  local id
  id=$("${command[@]}") || {
    echo "slurm/road.sh: $name was refused; what is listed above stays queued (scancel takes it back)" >&2
    exit 1
  }
  printf '%-18s %s\n' "$name" "${id%%;*}" >&2
  printf '%s\n' "${id%%;*}"
}

if [ -n "$dry" ]; then # what the scripts say of themselves, then what is said for all jobs, and for each
  grep -H '^#SBATCH' slurm/cache.sbatch slurm/train.sbatch slurm/distill.sbatch slurm/ladder.sbatch slurm/evaluate.sbatch >&2
  env | grep '^SBATCH_' | sort | sed "s|^|$site:|" >&2 || true
else
  mkdir -p "$out/logs"
fi
data=$out/cache
built=$(submit cache '' ${alone[@]+"${alone[@]}"} "--array=0-$((parts - 1))$limit" slurm/cache.sbatch "$crops" --out "$data" "${cache[@]}")
taught=$(submit teacher "$built" "--nodes=$nodes" slurm/train.sbatch "${teacher[@]}" --data.path "$data" \
  --out "$out/teacher")
submit evaluate-teacher "$taught" ${alone[@]+"${alone[@]}"} slurm/evaluate.sbatch "$out/teacher" --data "$data" >/dev/null
learnt=$(submit student "$taught" "--nodes=$nodes" slurm/distill.sbatch "${student[@]}" --data.path "$data" \
  --teacher.paths "$out/teacher" --out "$out/student")
submit evaluate-student "$learnt" ${alone[@]+"${alone[@]}"} slurm/evaluate.sbatch "$out/student" --data "$data" >/dev/null
pressed=$(submit ladder "$learnt" ${alone[@]+"${alone[@]}"} slurm/ladder.sbatch "${ladder[@]}" --model "$out/student" \
  --data "$data" --work "$out/ladder")
submit evaluate-ladder "$pressed" ${alone[@]+"${alone[@]}"} slurm/evaluate.sbatch "$out/ladder/model.safetensors" \
  --data "$data" >/dev/null
[ -n "$dry" ] || echo "logs: $2/logs; to watch: python -m training.runs --runs $2 --watch" >&2
