#!/usr/bin/env bash
# A real Slurm cluster of two nodes on this machine, beside whatever is configured on it:
#
#   slurm/local_cluster.sh up            starts it (munged, slurmctld, two slurmd)
#   eval "$(slurm/local_cluster.sh env)" lets sbatch, squeue and slurm/road.sh of this shell talk to it
#   slurm/local_cluster.sh status        nodes, partitions, jobs
#   slurm/local_cluster.sh fail n1       node n1 loses its power;  lose n1  only its network: what runs there runs on
#   slurm/local_cluster.sh recover n1    gives it back
#   slurm/local_cluster.sh down          cancels all jobs, stops everything, deletes the folder
#
# Needs Debian's slurm-wlm and munge. All files lie in $TACOPRESS_CLUSTER (default /tmp/tacopress-cluster-$USER), ports
# from $TACOPRESS_CLUSTER_PORT (27000) on. Partitions: main (default; its jobs make room, after 60 s) and urgent.
set -euo pipefail
home=$(cd "$(dirname "$0")/.." && pwd)
user=$(id -un)
folder=$(realpath -m "${TACOPRESS_CLUSTER:-/tmp/tacopress-cluster-$user}")
port=${TACOPRESS_CLUSTER_PORT:-27000}
PATH=$PATH:/usr/sbin:/sbin
export SLURM_CONF=$folder/slurm.conf

die() {
  echo "local_cluster: $*" >&2
  exit 2
}

# `down` deletes the folder, and jobs trust what is in it: it has to be one that `up` has made, for this user.
check_folder() {
  if [ ! -f "$folder/.tacopress-cluster" ] || [ ! -O "$folder" ] || [ -L "$folder" ]; then die "$1"; fi
}

check_installed() {
  local program
  for program in munged slurmctld slurmd sbatch scontrol; do
    command -v "$program" >/dev/null || die "$program is not installed: apt-get install slurm-wlm munge"
  done
}

write_config() {
  cat >"$SLURM_CONF" <<END
ClusterName=tacopress
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=$port
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
# A job that is queued again waits until its credentials have expired: two minutes, if nothing is said.
AuthInfo=socket=$folder/munge/socket,cred_expire=10
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool-%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=5,sched_interval=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=20
KillWait=20
MinJobAge=3600
MailProg=/bin/true
NodeName=n[1-2] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[$((port + 1))-$((port + 2))] CPUs=2 RealMemory=8000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
END
  # From 23.11 on slurmd asks for cgroups unless it is told that there are none.
  local version
  version=$(slurmd -V | sed 's/[^0-9]*\([0-9]*\)\.\([0-9]*\).*/\1\2/')
  if [ "$version" -ge 2311 ]; then
    echo 'CgroupPlugin=disabled' >"$folder/cgroup.conf"
  fi
}

write_site() { # site.env of this cluster: as the repository's, but the names n1 and n2 mean nothing to the network
  {
    cat "$home/slurm/site.env"
    printf '\nmaster_host=127.0.0.1\nunset SBATCH_PARTITION SBATCH_ACCOUNT SBATCH_QOS SBATCH_GPUS_PER_NODE SBATCH_CPUS_PER_GPU\n'
    printf "export GLOO_SOCKET_IFNAME=lo\nscratch=%q\n" "$folder/scratch"
    [ -z "${VIRTUAL_ENV:-}" ] || printf "activate() { PATH=%q:\$PATH; }\n" "$VIRTUAL_ENV/bin"
  } >"$folder/site.env"
}

start_munge() {
  install -d -m 755 "$folder/munge"
  [ -f "$folder/munge/key" ] || (umask 077 && head -c 1024 /dev/urandom >"$folder/munge/key")
  munged --force --socket="$folder/munge/socket" --key-file="$folder/munge/key" --pid-file="$folder/munge/pid" \
    --log-file="$folder/munge/log" --seed-file="$folder/munge/seed"
}

start_node() { slurmd -N "$1"; }

# What has ended, but has a parent that never asks, is not alive.
alive() { grep -sq '^State:[[:space:]]*[^ZX[:space:]]' "/proc/$1/status"; }

# pid_of DAEMON PID_FILE: of a daemon that is alive; a number in a file may be another process's by now.
pid_of() {
  local pid
  pid=$(cat "$2" 2>/dev/null) && alive "$pid" && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$1" ] && echo "$pid"
}

daemons() {
  pid_of slurmd "$folder/slurmd-n1.pid" || true
  pid_of slurmd "$folder/slurmd-n2.pid" || true
  pid_of slurmctld "$folder/slurmctld.pid" || true
}

# What Slurm leaves with the jobs of a node; it lives on without its daemon.
guards() {
  find /proc/[0-9]*/cwd -maxdepth 0 -lname "$folder" -printf '%h\n' 2>/dev/null | while read -r entry; do
    if [ "$(cat "$entry/comm" 2>/dev/null)" = slurmstepd ]; then echo "${entry#/proc/}"; fi
  done || true
}

# end PID...: asks them to, waits up to 10 s, and does not ask a second time.
end() {
  local pid tries=20
  for pid in "$@"; do kill "$pid" 2>/dev/null || true; done
  for pid in "$@"; do
    while alive "$pid" && [ $((tries -= 1)) -gt 0 ]; do sleep 0.5; done
    kill -KILL "$pid" 2>/dev/null || true
  done
}

# Munge last: Slurm's own daemons speak through it. It writes to the folder until it has ended.
stop_daemons() {
  # shellcheck disable=SC2046
  end $(daemons)
  local pid
  for pid in $(guards) $(pids_of n1) $(pids_of n2); do kill -KILL "$pid" 2>/dev/null || true; done
  # shellcheck disable=SC2046
  end $(pid_of munged "$folder/munge/pid" || true)
}

check_ports() {
  local number
  for number in "$port" $((port + 1)) $((port + 2)); do
    if (: <"/dev/tcp/127.0.0.1/$number") 2>/dev/null; then
      die "port $number is taken; choose another TACOPRESS_CLUSTER_PORT"
    fi
  done
}

wait_for_nodes() {
  local tries
  for tries in $(seq 60); do
    if [ "$(sinfo --noheader --Node --partition=main --states=idle --format=%N 2>/dev/null | sort -u | wc -l)" -eq 2 ]; then return; fi
    sleep 0.5
  done
  tail -n 5 "$folder"/*.log >&2
  die "the nodes did not come up within $((tries / 2)) s; see the logs in $folder"
}

up() {
  check_installed
  if [ -n "$(daemons)" ]; then die "it is up already; status shows it, down stops it"; fi
  check_ports
  if mkdir -m 755 "$folder" 2>/dev/null || [ -z "$(ls -A "$folder")" ]; then touch "$folder/.tacopress-cluster"; fi
  check_folder "$folder holds something else; choose another TACOPRESS_CLUSTER"
  trap 'stop_daemons; echo "local_cluster: nothing is left running; logs are in $folder" >&2' EXIT
  install -d -m 755 "$folder/state" "$folder/spool-n1" "$folder/spool-n2"
  install -d -m 700 "$folder/scratch"
  write_config
  write_site
  start_munge
  slurmctld
  start_node n1
  start_node n2
  wait_for_nodes
  trap - EXIT
  echo "two nodes are up; next: eval \"\$(slurm/local_cluster.sh env)\"" >&2
}

environment() {
  printf 'export SLURM_CONF=%q TACOPRESS_SITE=%q\n' "$SLURM_CONF" "$folder/site.env"
}

status() {
  pid_of slurmctld "$folder/slurmctld.pid" >/dev/null || die "it is down; up starts it"
  sinfo --Node --long
  squeue
}

# pids_of NODE: what runs there for jobs. Slurm puts its name into the environment of all of it.
pids_of() {
  { grep -lzxF "SLURMD_NODENAME=$1" /proc/[0-9]*/environ | xargs -r grep -lzxF "SLURM_CONF=$SLURM_CONF"; } 2>/dev/null |
    tr -cd '0-9\n' || true
}

# Slurm's own guards first, so that nobody is left to report how the processes of the jobs ended.
fail_node() {
  local tasks guards pid parent
  tasks=$(pids_of "$1")
  guards=$(pid_of slurmd "$folder/slurmd-$1.pid") || die "node $1 is down already"
  for pid in $tasks; do
    parent=$(awk '/^PPid:/ {print $2}' "/proc/$pid/status" 2>/dev/null || true)
    if [ -n "$parent" ] && [ "$(cat "/proc/$parent/comm" 2>/dev/null)" = slurmstepd ]; then guards="$guards $parent"; fi
  done
  # shellcheck disable=SC2086
  kill -STOP $guards 2>/dev/null || true
  # shellcheck disable=SC2086
  kill -KILL $guards $tasks 2>/dev/null || true
}

# Slurm loses sight of it; its jobs do not notice.
lose_node() {
  local pid
  pid=$(pid_of slurmd "$folder/slurmd-$1.pid") || die "node $1 is down already"
  kill -KILL "$pid"
}

down() {
  check_folder "there is no cluster of this script in $folder"
  if pid_of slurmctld "$folder/slurmctld.pid" >/dev/null; then
    timeout 20 scancel --user="$user" || true
    for _ in $(seq 30); do
      [ -n "$(timeout 10 squeue --noheader 2>/dev/null)" ] || break
      sleep 1
    done
  fi
  stop_daemons
  rm -rf "$folder"
}

case "${1:-}" in
  up) up ;;
  down) down ;;
  status) status ;;
  env) environment ;;
  fail | lose | recover)
    [[ ${2:-} =~ ^n[12]$ ]] || die "$1 takes a node: n1 or n2"
    case $1 in
      fail) fail_node "$2" ;;
      lose) lose_node "$2" ;;
      recover) start_node "$2" ;;
    esac
    ;;
  *)
    sed -n '2,/^set -euo/{/^set/d;s/^# \{0,1\}//p}' "$0" >&2
    exit 2
    ;;
esac
