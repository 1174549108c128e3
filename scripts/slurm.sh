#!/bin/bash
# scripts/slurm.sh up|down DIR: a Slurm of one machine, all of it in DIR, for tests and trials. Any
# user may start it; nothing outside DIR is written, and only what was started here is stopped.
# Needs slurmctld, slurmd, slurm-client and munge, Debian's names. `up` ends with a line to evaluate.
set -euo pipefail
verb=$1 dir=$2 host=$(hostname -s)
export SLURM_CONF=$dir/slurm.conf

start() {
  local name=$1
  shift
  [ -s "$dir/$name.started" ] && kill -0 "$(cat "$dir/$name.started")" 2>/dev/null && return
  "$@" >"$dir/log/$name.out" 2>&1 &
  echo $! >"$dir/$name.started"
}

if [ "$verb" = down ]; then
  timeout 10 scancel --user="$(id -u)" 2>/dev/null && sleep 3 # jobs of this one alone
  for name in slurmd slurmctld munged; do
    [ -s "$dir/$name.started" ] || continue
    pid=$(cat "$dir/$name.started")
    kill "$pid" 2>/dev/null || true
    for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null || break; sleep 0.2; done
    rm -f "$dir/$name.started"
  done
  exit
fi

mkdir -p "$dir"/{state,spool,log,munge}
chmod 755 "$dir" "$dir/log"
chmod 700 "$dir/munge"
[ -s "$dir/munge/key" ] || head -c 128 /dev/urandom >"$dir/munge/key"
chmod 400 "$dir/munge/key"
port=${SLURM_TEST_PORT:-16917}
cat >"$SLURM_CONF" <<END
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$dir/munge.sock
SlurmctldPort=$port
SlurmdPort=$((port + 1))
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(getconf _NPROCESSORS_ONLN) State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP
END
start munged munged --foreground --key-file="$dir/munge/key" --socket="$dir/munge.sock" \
  --pid-file="$dir/munge/pid" --log-file="$dir/munge/log" --seed-file="$dir/munge/seed"
for _ in $(seq 50); do [ -S "$dir/munge.sock" ] && break; sleep 0.1; done
start slurmctld slurmctld -D
start slurmd slurmd -D
for _ in $(seq 150); do sinfo -h -o %T 2>/dev/null | grep -q idle && ready=1 && break; sleep 0.2; done
if [ -z "${ready:-}" ]; then
  echo "Slurm did not come up:" >&2
  tail -n 5 "$dir"/log/* >&2
  exit 1
fi
echo "export SLURM_CONF=$SLURM_CONF"
