#!/usr/bin/env bash
# Makes .venv-peers, the environment of the loaders that bench/data.py measures beside ours: peers.sh [FOLDER] [PYTHON].
# Called by `make bench`; what is there already is used again; safe to interrupt and to repeat.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv-peers} python=${2:-python3}
ready=$venv/.ready-$(cat constraints/peers.txt bench/peers.sh | sha256sum | cut -c 1-16)
log=$venv/install.log

source constraints/alone.sh
alone peers "$ready"

echo "[peers] making $venv with webdataset, megatron-energon and mosaicml-streaming (about 2 minutes, 1.3 GB, once)"
"$python" -m venv --clear "$venv"

pip_install() {
    "$venv/bin/pip" install --disable-pip-version-check --progress-bar off -c constraints/peers.txt "$@" >>"$log" 2>&1 || {
        tail -n 25 "$log" >&2
        echo "error: pip could not install $* (all of its output: $log); run the same command to try again" >&2
        exit 1
    }
}

pip_install torch numpy safetensors webdataset megatron-energon \
    transformers requests tqdm xxhash brotli zstd python-snappy catalogue psutil
pip_install --no-deps mosaicml-streaming torchvision # why without what they declare: constraints/peers.txt
"$venv/bin/python" -W ignore -c 'import webdataset, streaming, megatron.energon' >>"$log" 2>&1 || {
    tail -n 25 "$log" >&2
    echo "error: what was installed in $venv does not import (all of the output: $log)" >&2
    exit 1
}
touch "$ready"
echo "[peers] $venv is ready (${SECONDS} s)"
