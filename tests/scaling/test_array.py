"""The array starts exactly the words of each cell, through the script of single runs."""

import shutil
import subprocess

import pytest

from scaling.array import write_array
from tests.scaling.sweep_case import ROOT, cell, planner


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder with the real script in it; tests work there."""
    (tmp_path / "slurm").mkdir()
    shutil.copy(ROOT / "slurm/train.sbatch", tmp_path / "slurm/train.sbatch")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_each_task_hands_its_cell_s_words_on(inputs, checkout):
    made = planner(inputs, wandb__tags=["a b", 'c"d'])
    cells = [cell(inputs, f"cell{size}", made=made, size=size) for size in ("1k", "3k")]
    path = write_array(checkout / "sweep", cells)
    text = path.read_text()
    assert "#SBATCH --array=0-1\n" in text and "#SBATCH --requeue\n" in text and text.count("--output") == 1
    assert "exec bash slurm/train.sbatch" in text
    # The same lines but for what the cluster does: the script of single runs prints what it is given.
    (checkout / "slurm/train.sbatch").write_text('printf "%s\\n" "$@"\n')
    for number, one in enumerate(cells):
        environment = {"SLURM_ARRAY_TASK_ID": str(number), "PATH": "/usr/bin:/bin"}
        done = subprocess.run(["bash", path], env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines() == list(one.words)


def test_only_the_root_of_the_checkout_will_do(inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="slurm/train.sbatch is not here"):
        write_array(tmp_path / "sweep", [cell(inputs)])
