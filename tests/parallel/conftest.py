"""One set of processes runs every layout; the tests of this folder read what it wrote."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # for `layout_reference`, which the processes import too


@pytest.fixture(scope="session")
def layouts(tmp_path_factory):
    """Folder of results, one sub-folder a case of `run_layouts.py`."""
    folder = tmp_path_factory.mktemp("layouts")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "TORCHELASTIC_"))},
        "PYTHONPATH": str(HERE.parents[1]),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    command = [sys.executable, str(HERE / "run_layouts.py"), str(folder)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1150, check=False)
    assert run.returncode == 0, run.stderr[-4000:]
    return folder
