# shellcheck shell=bash
# What the job scripts share: recipes, starting processes, being queued again. Sourced from the folder that holds slurm/.
set -euo pipefail

say() { printf 'slurm: %s\n' "$*" >&2; }
fail() {
  say "$*"
  exit 2
}

# recipe FOLDER NAME: the file of a recipe that is named, or given as a file.
recipe() {
  local named=$1/recipes/${2%.yaml}.yaml
  if [ -f "$named" ]; then
    printf '%s\n' "$named"
  elif [ -f "$2" ]; then
    printf '%s\n' "$2"
  else
    fail "there is no recipe $2: give a YAML file, or one of $(cd "$1/recipes" && printf '%s\n' *.yaml | sed 's/\.yaml$//' | xargs)"
  fi
}

# option NAME [options]: the value of `--NAME VALUE` or `--NAME=VALUE`, the last one of several; empty if there is none.
option() {
  local name=$1 found=
  shift
  while [ $# -gt 0 ]; do
    case $1 in
      "--$name="*) found=${1#*=} ;;
      "--$name") found=${2:-} ;;
    esac
    shift
  done
  printf '%s\n' "$found"
}

# data_of RECIPE [options]: the cache that a training reads.
data_of() {
  local found
  found=$(option data.path "${@:2}")
  if [ -z "$found" ]; then
    found=$(sed -n '/^data:/,/^[^ ]/s/^ *path: *//p' "$1" | sed -n '1{s/ *#.*//;s/^["'\'']\(.*\)["'\'']$/\1/;p}')
  fi
  printf '%s\n' "$found"
}

# What Slurm calls this job: tasks of an array have names of their own.
job_id() {
  if [ -n "${SLURM_ARRAY_JOB_ID:-}" ]; then
    printf '%s_%s\n' "$SLURM_ARRAY_JOB_ID" "$SLURM_ARRAY_TASK_ID"
  else
    printf '%s\n' "$SLURM_JOB_ID"
  fi
}

# How many processes a node gets: one per GPU, or as many as --ntasks-per-node says if those are more.
tasks_per_node() {
  local gpus=${SLURM_GPUS_ON_NODE:-0} tasks=${SLURM_NTASKS_PER_NODE:-1}
  if [ "$gpus" -gt "$tasks" ]; then printf '%s\n' "$gpus"; else printf '%s\n' "$tasks"; fi
}

# cores_for TASKS: what each of them gets, on the node that has the fewest. srun would wait for ever for more than there are.
cores_for() {
  local fewest
  fewest=$(printf '%s\n' "${SLURM_JOB_CPUS_PER_NODE:-${SLURM_CPUS_ON_NODE:?}}" | tr ',' '\n' | sed 's/(.*//' | sort -n | sed -n 1p)
  if [ "$fewest" -lt "$1" ]; then
    fail "$1 processes per node, but $fewest cores: ask for more (--cpus-per-gpu=N, or SBATCH_CPUS_PER_GPU in $site)"
  fi
  printf '%s\n' $((fewest / $1))
}

# Where processes meet: a port of this job's own, for nodes may be shared; another one after a restart.
rendezvous() {
  local first
  first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
  export MASTER_ADDR=${master_host:-$first$master_suffix}
  export MASTER_PORT=$((12000 + (SLURM_JOB_ID + 7919 * ${SLURM_RESTART_COUNT:-0}) % 14000))
}

# step HOW NODES TASKS_PER_NODE WAIT MODULE [options]: runs a job on so many nodes; see rank.sh for HOW. WAIT: seconds that
# the others get once the first process has ended; killing them at once would hide the status of those that save. 0: any.
step() {
  local how=$1 nodes=$2 tasks=$3 wait=$4 cores seen gpus=() inside=()
  shift 4
  cores=$(cores_for "$tasks") || exit 2
  seen=$PWD:$PWD${scratch:+,$scratch:$scratch}${mounts:+,$mounts}
  export TACOPRESS_WORLD=$((nodes * tasks)) TACOPRESS_PER_NODE=$tasks OMP_NUM_THREADS=$cores
  export TACOPRESS_CONTAINER=$container TACOPRESS_IMAGE=$image TACOPRESS_MOUNTS=$seen
  if [ "$container" = pyxis ]; then
    inside=("--container-image=$image" "--container-mounts=$seen" "--container-workdir=$PWD")
  fi
  # Said again, or a node that is taken as a whole (--exclusive) shows none to its steps.
  if [ "${SLURM_GPUS_ON_NODE:-0}" -gt 0 ]; then gpus=("--gpus-per-node=$SLURM_GPUS_ON_NODE"); fi
  srun --export=ALL --nodes="$nodes" --ntasks=$((nodes * tasks)) --ntasks-per-node="$tasks" --cpus-per-task="$cores" \
    --mpi=none --kill-on-bad-exit=0 --wait="$wait" ${gpus[@]+"${gpus[@]}"} ${inside[@]+"${inside[@]}"} \
    bash slurm/rank.sh "$how" "$@"
}

# run_alone MODULE [options]: one process. run_everywhere MODULE [options]: one process per GPU of the allocation.
run_alone() { ended step alone 1 1 0 "$@"; }
run_everywhere() {
  local tasks
  tasks=$(tasks_per_node)
  if [ $((SLURM_JOB_NUM_NODES * tasks)) -eq 1 ]; then
    run_alone "$@"
  elif [ "$launch" = srun ]; then
    ended step ranks "$SLURM_JOB_NUM_NODES" "$tasks" 90 "$@"
  elif [ "$launch" = accelerate ]; then # it starts the processes of a node itself
    export TACOPRESS_GPUS=$tasks
    ended step accelerate "$SLURM_JOB_NUM_NODES" 1 90 "$@"
  else
    fail "launch=$launch in $site is none of srun, accelerate"
  fi
}

# stage CACHE: copies it to the disk of each node, if site.env names a folder there. Readers find the copy by its content.
stage() {
  local status=0 nodes=$SLURM_JOB_NUM_NODES
  if [ -z "$scratch" ]; then return 0; fi
  if [ ! -f "$1/manifest.json" ]; then
    say "not staged: there is no cache at '$1'"
    return 0
  fi
  export TACOPRESS_SCRATCH=$scratch
  if [ "$container" != none ]; then # what is to be seen in there has to exist outside
    srun --export=ALL --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 mkdir -p -m 700 "$scratch" || status=$?
  fi
  step alone "$nodes" 1 0 augment_cache.stage --cache "$1" --scratch "$scratch" || status=$?
  if [ "$status" -ne 0 ] && told_to_stop "$status"; then finish "$status"; fi
  if [ "$status" -ne 0 ]; then say "$1 is read where it lies"; fi
}

# 75: saved itself. 138: USR1 came before Python could listen. Preempted: whatever it was, it was not the job's fault.
told_to_stop() {
  [ "$1" -eq 75 ] || [ "$1" -eq 138 ] || [[ $(scontrol show job "$(job_id)") == *\ PreemptTime=[0-9]* ]]
}

# A job that is being cancelled is told to stop, too; queueing that again would bring it back from the dead.
is_cancelled() { [[ $(squeue --noheader --jobs="$(job_id)" --format=%T) =~ ^(COMPLETING|CANCELLED) ]]; }

# The controller may be busy, above all when many jobs are preempted at once.
queue_again() {
  local try
  for try in 1 2 3 4 5; do
    if scontrol requeue "$(job_id)"; then return; fi
    sleep $((5 * try))
  done
  say "could not be queued again; submit the same command to go on"
}

# finish STATUS: ends the script; a job that was told to stop is queued again.
finish() {
  local status=$1 restarts=${SLURM_RESTART_COUNT:-0}
  if [ "$status" -eq 0 ] || ! told_to_stop "$status"; then exit "$status"; fi
  if is_cancelled; then
    say "cancelled, so not queued again; submit the same command to go on"
    exit "$status"
  fi
  if [ "$restarts" -ge "$max_requeues" ]; then
    say "stopped after $restarts restarts, all that max_requeues=$max_requeues in $site allows"
    exit 1
  fi
  say "stopped with status $status; queued again, restart $((restarts + 1)) of at most $max_requeues"
  queue_again
  exit "$status"
}

ended() {
  local status=0
  "$@" || status=$?
  finish "$status"
}

site=${TACOPRESS_SITE:-slurm/site.env}
[ -f "$site" ] || fail "TACOPRESS_SITE=$site does not exist"
asked=${SBATCH_PARTITION:-}
scratch='' container=none image='' mounts='' launch=srun max_requeues=20 master_host='' master_suffix=''
# shellcheck disable=SC2317 # a site may leave it as it is
activate() { :; }
# shellcheck source=slurm/site.env
. "$site"
if [ -z "$asked" ] && [ -n "${SBATCH_PARTITION:-}" ] && [ "$SBATCH_PARTITION" != "${SLURM_JOB_PARTITION:-}" ]; then
  say "partition ${SLURM_JOB_PARTITION:-}, not $SBATCH_PARTITION as in $site: run \`. $site\` before sbatch"
fi
set +u # what activates environments is seldom written for it
activate || fail "activate in $site has failed"
set -u
rendezvous || fail "scontrol does not tell the nodes of this job"
# Said for the whole job, but srun takes them for the step, where they contradict what is said there.
unset SLURM_CPUS_PER_GPU SLURM_CPUS_PER_TASK SLURM_TRES_PER_TASK SLURM_NTASKS_PER_GPU
export TACOPRESS_MAX_REQUEUES=$max_requeues # the jobs count, too
export NCCL_DEBUG=${NCCL_DEBUG:-WARN} PYTHONFAULTHANDLER=1
if [ -z "${SLURM_GPUS_ON_NODE:-}${SLURM_JOB_GPUS:-}" ]; then
  export ACCELERATE_USE_CPU=true
  say "no GPU in this allocation: working on CPUs"
fi
TACOPRESS_LOG=$(readlink "/proc/$$/fd/1" || true) # which log belongs to a run; `python -m training.runs` shows its end
export TACOPRESS_LOG
say "job $(job_id) on ${SLURM_JOB_NODELIST}, restart ${SLURM_RESTART_COUNT:-0}: $SLURM_JOB_NAME $*"
