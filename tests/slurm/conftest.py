"""A real SLURM of two nodes on this machine, from the distribution's packages, started once for these tests."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from getpass import getuser
from pathlib import Path

import pytest

from tests.slurm.checkout_case import Checkout
from tests.trainer.run_case import write_inputs

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "sinfo", "squeue", "scancel")
NODES = 2
CONFIG = """\
ClusterName=tessera
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
FirstJobId={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool.%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=2
MpiDefault=none
ReturnToService=2
KillWait=30
SlurmdTimeout=12
MinJobAge=3600
JobRequeue=1
AccountingStorageType=accounting_storage/none
PropagateResourceLimitsExcept=MEMLOCK
"""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The environment its clients need, its daemons, and what the tests ask of it."""

    env: dict[str, str]
    root: Path
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, *command: str) -> None:
        with (self.root / f"{name}.log").open("ab") as log:
            self.daemons[name] = subprocess.Popen(command, env=self.env, stdout=log, stderr=subprocess.STDOUT)

    def start_node(self, name: str) -> None:
        self.start(name, "slurmd", "-D", "-f", str(self.root / "slurm.conf"), "-N", name)

    def kill_node(self, name: str) -> None:
        """What runs on it goes on, as on a node that lost its network."""
        self.daemons[name].send_signal(signal.SIGKILL)
        self.daemons[name].wait()

    def run(self, *command: str, cwd: Path | None = None, **extra: str) -> str:
        done = subprocess.run(
            command, cwd=cwd, env=self.env | extra, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def field(self, job: str, name: str) -> str:
        words = self.run("scontrol", "show", "job", job).split()
        return next(word.split("=", 1)[1] for word in words if word.startswith(name + "="))

    def wait(self, job: str, states: tuple[str, ...], *, seconds: float) -> str:
        """The state the job reached, which is one of `states`; fails when it takes longer than `seconds`."""
        end = time.monotonic() + seconds
        while (state := self.field(job, "JobState")) not in states:
            assert time.monotonic() < end, f"job {job} is {state}, not {states}, after {seconds} s"
            time.sleep(0.5)
        return state


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    path = os.pathsep.join((os.environ["PATH"], "/usr/sbin", "/sbin"))
    missing = [program for program in PROGRAMS if shutil.which(program, path=path) is None]
    if missing:
        why = f"no SLURM here ({', '.join(missing)}); Debian: apt-get install slurm-wlm slurm-client munge"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    root = tmp_path_factory.mktemp("slurm")
    root.chmod(0o755)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_"))}
    env = kept | {"PATH": path, "SLURM_CONF": str(root / "slurm.conf")}
    cluster = Cluster(env=env, root=root)
    try:
        _start_all(root, cluster)
        end = time.monotonic() + 60
        while subprocess.run(
            ("sinfo", "-h", "-t", "idle", "-o", "%D"), env=env, capture_output=True, text=True, check=False
        ).stdout.strip() != str(NODES):
            logs = "\n".join(f"{log.name}: {log.read_text()[-2000:]}" for log in sorted(root.glob("*.log")))
            assert time.monotonic() < end, f"SLURM's nodes are not idle after 60 s\n{logs}"
            time.sleep(0.25)
        yield cluster
        cluster.run("scancel", "--user", getuser())
        time.sleep(1)
    finally:
        daemons = list(reversed(cluster.daemons.values()))
        for daemon in daemons:
            daemon.terminate()
        for daemon in daemons:
            try:
                daemon.wait(timeout=20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


@pytest.fixture(scope="session")
def checkout(cluster, tmp_path_factory) -> Checkout:
    """With `latents/` and `codec/` in it."""
    found = Checkout(tmp_path_factory.mktemp("checkout"), cluster)
    write_inputs(found.folder)
    return found


def _start_all(root: Path, cluster: Cluster) -> None:
    key = root / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    cluster.start(
        "munged",
        *("munged", "--foreground", "--force", f"--socket={root}/munge.socket", f"--key-file={key}"),
        *(f"--pid-file={root}/munged.pid", f"--seed-file={root}/munge.seed", f"--log-file={root}/munged.log"),
    )
    host = socket.gethostname().split(".")[0]
    ports = [free_port() for _ in range(NODES + 1)]
    lines = [CONFIG.format(host=host, port=ports[0], user=getuser(), root=root)]
    for index in range(NODES):
        (root / f"spool.n{index}").mkdir()
        address = f"NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[index + 1]}"
        lines.append(f"NodeName=n{index} {address} CPUs=4 RealMemory=4000 State=UNKNOWN\n")
    lines.append(f"PartitionName=main Nodes=n[0-{NODES - 1}] Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO\n")
    (root / "state").mkdir()
    (root / "slurm.conf").write_text("".join(lines))
    cluster.start("slurmctld", "slurmctld", "-D", "-f", str(root / "slurm.conf"))
    for index in range(NODES):
        cluster.start_node(f"n{index}")
