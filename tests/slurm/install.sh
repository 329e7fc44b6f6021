#!/usr/bin/env bash
# Debian's SLURM, for the tests that start a real two-node cluster on this machine. Never fails: without it they
# are skipped, and fail where CI is set.
set -euo pipefail
for program in slurmctld slurmd sbatch munged; do
    command -v "$program" >/dev/null || missing=1
done
[ -n "${missing:-}" ] || exit 0

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "[setup] Debian's SLURM, for the cluster tests (about 15 s, once)"
    log=$(mktemp)
    export DEBIAN_FRONTEND=noninteractive
    if (apt-get update -qq && apt-get install -y -qq --no-install-recommends slurm-wlm slurm-client munge) >"$log" 2>&1; then
        rm -f "$log"
        exit 0
    fi
    tail -n 5 "$log" >&2
fi
echo "[setup] no SLURM here: the cluster tests will be skipped (as root: apt-get install slurm-wlm slurm-client munge)"
