#!/usr/bin/env bash
# One task of a step: rank.sh HOW MODULE [options]. HOW: alone (a process that knows of no other), ranks (this is one of
# many), accelerate (starts those of this node). It ends by becoming the job (exec): a shell in between would die of the
# signals that are meant for Python.
set -euo pipefail
how=$1
shift
unset RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE
case $how in
  ranks)
    export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$TACOPRESS_WORLD LOCAL_WORLD_SIZE=$TACOPRESS_PER_NODE
    set -- python -m "$@"
    ;;
  accelerate)
    # Each process of this node is to take its share of the cores, not all that the task has.
    unset SLURM_CPUS_PER_TASK
    # Without these torch forwards no USR1, and kills after 30 s what has not saved yet.
    export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 PET_SHUTDOWN_TIMEOUT=300
    set -- python slurm/accelerate_launch.py --multi_gpu --num_processes $((TACOPRESS_WORLD * TACOPRESS_GPUS)) \
      --num_machines "$TACOPRESS_WORLD" --machine_rank "$SLURM_NODEID" --main_process_ip "$MASTER_ADDR" \
      --main_process_port "$MASTER_PORT" --rdzv_backend static --mixed_precision no --dynamo_backend no -m "$@"
    ;;
  *) set -- python -m "$@" ;;
esac
if [ "$TACOPRESS_CONTAINER" = apptainer ]; then
  set -- apptainer exec --nv --bind "$TACOPRESS_MOUNTS" --pwd "$PWD" "$TACOPRESS_IMAGE" "$@"
fi
exec "$@"
