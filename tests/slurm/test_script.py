"""The sbatch script of a job says what was asked for, in a form that bash and sbatch read as it was meant."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from slurm.cluster import ClusterConfig, ContainerConfig
from slurm.script import Job, render
from trainer.compose import to_dataclass

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path.stem for path in (ROOT / "conf/cluster").glob("*.yaml"))


def job(**changes) -> Job:
    parts = {"name": "first", "module": "trainer.train", "configs": (Path("runs/first/submit.yaml"),), "nodes": 2}
    parts |= {"ranks_per_node": 4, "checkout": Path("/shared/tessera"), "cluster": ClusterConfig()}
    return Job(**(parts | changes))


def example(name: str) -> ClusterConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return to_dataclass(ClusterConfig, compose("submit", [f"cluster={name}"]).cluster)


def run_by_bash(script: str, folder: Path, **environment: str) -> list[str]:
    """What a script gives to slurm/train.sbatch: settings, then its arguments, in a checkout of one line."""
    (folder / "slurm").mkdir(parents=True)
    names = "RANKS_PER_NODE REQUEUE HEAD_ADDRESS NOTE NCCL_SOCKET_IFNAME SRUN_OPTIONS WRAPPER"
    (folder / "slurm/train.sbatch").write_text(f'for n in {names}; do echo "$n=${{!n-}}"; done; printf "%s\\n" "$@"\n')
    script = script.replace("/shared/tessera", str(folder))
    done = subprocess.run(
        ["bash"], input=script, env=os.environ | environment, cwd="/", capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_is_a_script_that_bash_can_read(name):
    script = render(job(cluster=example(name)))
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    head, _, body = script.partition("\nset -eo pipefail\n")
    assert all(line.startswith("#") for line in head.splitlines())
    assert "#SBATCH" not in body


def test_facts_become_directives_and_what_is_not_given_is_slurms_default():
    lines = render(job()).splitlines()
    assert "#SBATCH --nodes=2" in lines and "#SBATCH --ntasks-per-node=1" in lines
    assert not [line for line in lines if "--partition" in line or "--gpus" in line or "--time" in line]
    lines = render(job(cluster=replace(example("bare_metal"), options=("--constraint=ib",)))).splitlines()
    wanted = ["--partition=gpu", "--account=research", "--time=24:00:00", "--gpus-per-node=8", "--cpus-per-task=96"]
    wanted += ["--mem=0", "--exclusive", "--constraint=ib", "--requeue", "--signal=B:USR1@120"]
    assert {f"#SBATCH {option}" for option in wanted} <= {*lines}
    assert "module load cuda/12.8" in lines


def test_settings_reach_the_launcher_whatever_is_in_them(tmp_path):
    note = 'it\'s $HOME; `ls` "quoted"'
    cluster = ClusterConfig(environment={"NOTE": note}, interface="ib0", head_address="10.0.0.1")
    path = Path("runs/a name/submit.yaml")
    folder = tmp_path / "a place"
    said = run_by_bash(render(job(cluster=cluster, configs=(path,), checkout=folder)), folder)
    assert f"NOTE={note}" in said and "NCCL_SOCKET_IFNAME=ib0" in said and "RANKS_PER_NODE=4" in said
    assert "HEAD_ADDRESS=10.0.0.1" in said and "REQUEUE=1" in said
    assert said[-4:] == ["-m", "trainer.train", "--config", str(path)]
    knowing = replace(cluster, prelude=('export HEAD_ADDRESS="$SITE"',))
    folder = tmp_path / "another place"
    said = run_by_bash(render(job(cluster=knowing, configs=(path,), checkout=folder)), folder, SITE="10.0.0.9")
    assert "HEAD_ADDRESS=10.0.0.9" in said, "a prelude may know the first node of this allocation"


def test_a_task_of_an_array_takes_its_own_config(tmp_path):
    paths = tuple(Path(f"runs/s-{number}/submit.yaml") for number in range(3))
    script = render(job(configs=paths, at_once=2))
    assert "#SBATCH --array=0-2%2" in script and "#SBATCH --output=runs/slurm/%A_%a.log" in script
    assert run_by_bash(script, tmp_path, SLURM_ARRAY_TASK_ID="2")[-1] == str(paths[2])


def test_a_link_of_a_chain_does_not_requeue_itself(tmp_path):
    script = render(job(is_chained=True))
    assert "#SBATCH --no-requeue" in script
    assert "REQUEUE=0" in run_by_bash(script, tmp_path / "chained")
    assert "REQUEUE=0" in run_by_bash(render(job(cluster=ClusterConfig(requeue=False))), tmp_path / "never")


def test_containers_are_started_by_srun_or_around_python(tmp_path):
    said = run_by_bash(render(job(cluster=replace(example("pyxis"), modules=()))), tmp_path / "pyxis")
    here = tmp_path / "pyxis"
    mounts = f"--container-mounts={here}:{here},/shared/data:/shared/data"
    options = f"--container-image=/shared/images/tessera.sqsh {mounts} --container-workdir={here}"
    assert f"SRUN_OPTIONS={options}" in said and "WRAPPER=" in said
    said = run_by_bash(render(job(cluster=replace(example("apptainer"), modules=()))), tmp_path / "apptainer")
    here = tmp_path / "apptainer"
    binds = f"--bind {here} --bind /shared/data:/shared/data --pwd {here}"
    assert f"WRAPPER=apptainer exec --nv {binds} /shared/images/tessera.sif" in said and "SRUN_OPTIONS=" in said


def test_a_path_that_would_fall_apart_is_refused():
    container = ContainerConfig(kind="apptainer", image="/shared/my image.sif")
    with pytest.raises(ValueError, match=r"'/shared/my image.sif' has a blank in it, which WRAPPER cannot hold"):
        render(job(cluster=ClusterConfig(container=container)))


@pytest.mark.parametrize(
    "name", ["a\n#SBATCH --partition=other", "a\rb", "a\x1b[2J", 'a" --wrap="rm', "it's", "a\\", "a\u2028b"], ids=ascii
)
def test_a_name_that_would_leave_its_line_is_refused(name):
    with pytest.raises(
        ValueError, match=r"^name=.* has .* in it, which a script for sbatch cannot hold: leave it away$"
    ):
        render(job(name=name))


def test_a_folder_may_have_anything_that_a_shell_can_quote(tmp_path):
    path = Path("runs/a `b` $(touch c) 'd' \"e\"; f/submit.yaml")
    assert run_by_bash(render(job(configs=(path,))), tmp_path)[-1] == str(path)
    assert {entry.name for entry in tmp_path.iterdir()} == {"slurm"}
    with pytest.raises(ValueError, match=r"^folder='runs/a\\nb' has '\\n' in it"):
        render(job(configs=(Path("runs/a\nb/submit.yaml"),)))


def test_a_name_with_blanks_or_a_hash_is_quoted():
    assert '#SBATCH --job-name="lr 1e-3 #2"' in render(job(name="lr 1e-3 #2")).splitlines()
