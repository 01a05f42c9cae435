#!/usr/bin/env bash
# A real SLURM of one node, which is this machine, runs the smoke grid through the Snakefile. By hand and as root:
#
#     apt-get install munge slurmctld slurmd slurm-client
#     pip install -e '.[cluster]'
#     bash tests/slurm.sh
#
# One job fails on purpose and one is cancelled; the same command then makes what is missing, and the record of the
# cancelled run is compared with that of an undisturbed one. All files are in a temporary folder, but for the link
# /etc/slurm/slurm.conf; at the end they and the daemons are gone.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { echo "tests/slurm.sh: $*" >&2; exit 1; }
say() { printf '\n# %s\n' "$*"; }
show() { printf '$ %s\n' "$*"; "$@"; }

link=/etc/slurm/slurm.conf
[ "$(id -u)" = 0 ] || fail "it starts SLURM's daemons: run it as root"
[ ! -e $link ] || fail "$link is there: this machine has a SLURM already"
for tool in munged slurmctld slurmd squeue snakemake metanb; do
    command -v $tool > /dev/null || fail "$tool is not installed: see the head of this file"
done

work=$(mktemp -d -t slurm.XXXX)
export METANB_STORE=$work/store OMP_NUM_THREADS=1
mkdir -p "$work"/{state,spool,profile,store}
daemons=()
finish() {
    if [ -L $link ]; then scancel --user=root --wait 2>> "$work/finish.log" || true; rm -f $link; fi
    for ((i = ${#daemons[@]} - 1; i >= 0; i--)); do kill "${daemons[i]}" 2>> "$work/finish.log" || true; done
    wait
    if [ "${KEEP:-}" ]; then echo "kept: $work"; else rm -rf "$work"; fi
}
trap finish EXIT
trap 'exit 130' INT TERM

cat > "$work/slurm.conf" << CONF
ClusterName=one
SlurmctldHost=$(hostname -s)(127.0.0.1)
AuthInfo=socket=$work/munge.socket
SlurmUser=root
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
AccountingStorageType=accounting_storage/none
$(slurmd -C | head -n 1) NodeAddr=127.0.0.1
PartitionName=main Nodes=ALL Default=YES
CONF

cat > "$work/profile/config.yaml" << 'PROFILE'
executor: slurm
jobs: 50                      # at a time
keep-going: true              # when one fails
slurm-status-command: squeue  # for a SLURM without accounting
slurm-init-seconds-before-status-checks: 5
default-resources:
  slurm_partition: main
PROFILE

say "one node"
dd if=/dev/urandom of="$work/munge.key" bs=1024 count=1 status=none
chmod 400 "$work/munge.key"
munged --force --foreground --key-file="$work/munge.key" --socket="$work/munge.socket" --pid-file="$work/munge.pid" \
    --seed-file="$work/munge.seed" 2>> "$work/munged.err" & daemons+=($!)
until [ -S "$work/munge.socket" ]; do sleep 0.2; done
ln -s "$work/slurm.conf" $link
slurmctld -D 2>> "$work/slurmctld.err" & daemons+=($!)
slurmd -D 2>> "$work/slurmd.err" & daemons+=($!)
for _ in {1..60}; do sinfo --noheader --states=idle 2>> "$work/sinfo.err" | grep -q idle && break; sleep 0.5; done
show sinfo

run_id() { python -c "import sys; from metanb.grids.definitions import select_runs, smoke_grid; print(select_runs(smoke_grid(), sys.argv[1])[0].settings.id)" "$1"; }
cancelled=$(run_id '*-maml-s0-*') torn=$(run_id '*-fomaml-s1-*')
grid=(snakemake --profile "$work/profile" --config grid=smoke)

say "the smoke grid; the checkpoint of $torn is torn, and $cancelled is cancelled while it trains"
echo torn > "$METANB_STORE/$torn.pt"
printf '$ %s\n' "${grid[*]}"
"${grid[@]}" > "$work/first.txt" 2>&1 & first=$!
saved() { stat --format=%y "$METANB_STORE/$cancelled.pt" 2>> "$work/finish.log" || true; }
untrained=
until [ "$untrained" ] && [ "$(saved)" != "$untrained" ]; do
    kill -0 $first 2>> "$work/finish.log" || { cat "$work/first.txt"; fail "Snakemake ended too early"; }
    [ "$untrained" ] || untrained=$(saved)
    sleep 0.1
done
job=$(squeue --noheader --format='%i %k' | awk -v run="$cancelled" 'index($2, run) {print $1}')
show squeue --format='%.6i %.9P %.2t %.6M %.4C %.7m %.10l  %k'
show scancel "$job"
if wait $first; then fail "Snakemake ended well although a job failed and one was cancelled"; fi
grep -E '^[0-9]+ of|runs are recorded|^Error in|message:|log: .*error details' "$work/first.txt"

say "what is kept of the two"
show tail -n 2 "$METANB_STORE/$torn.log" "$METANB_STORE/$cancelled.log"
show find .snakemake/slurm_logs -name '*.log' -newer "$work/profile/config.yaml"
show metanb grid smoke --list

say "the cause is removed, and the same command makes what is missing"
show rm "$METANB_STORE/$torn.pt"
printf '$ %s\n' "${grid[*]}"
"${grid[@]}" > "$work/second.txt" 2>&1 || { cat "$work/second.txt"; fail "the second call failed"; }
grep -E '^[0-9]+ of|runs are recorded' "$work/second.txt"
show metanb grid smoke --list
show grep resumed "$METANB_STORE/$cancelled/provenance.json"

say "the cancelled run has the numbers of an undisturbed one"
METANB_STORE=$work/other metanb train --scale smoke --device cpu > "$work/other.txt" 2>&1
show cmp "$work/other/$cancelled/measures.csv" "$METANB_STORE/$cancelled/measures.csv"
echo "the same"

say "the records come home"
show metanb grid smoke --budget 0 --export "$work/out"
show env METANB_STORE="$work/home" metanb grid smoke --import "$work/out" --list
