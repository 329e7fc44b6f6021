"""Workers that die, hang or fail: replaced once with the same work, and the stream is the same."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from data.loader import Loader, RankShare
from data.mixture import DataSet
from data.pack import PackPlan
from data.pool import cut_into_jobs
from data.step import ReadAhead
from tests.data.latent_set import sample, write_latents
from tests.data.workers import at_replacement, away, is_running, until, workers_of

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_latents(tmp_path_factory.mktemp("pool") / "set", [sample(i) for i in range(60)])


def loader(manifest, *, workers=1, timeout_s=60.0, **options):
    plan = PackPlan(DataSet.of(manifest), seed=3, tokens_per_pack=100, window=25)
    return Loader(plan, packs_per_step=2, ahead=ReadAhead(workers=workers, timeout_s=timeout_s), **options)


def stream(source, count):
    return [
        tuple(tuple((s.key, float(s.latent_CTHW.sum())) for s in pack) for pack in next(source).packs)
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def expected(manifest):
    with loader(manifest, workers=0) as source:
        return stream(source, 30)


def shard_of(manifest, row=0):
    return Path(manifest.folder) / manifest.row(row)["shard"]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_stream_does_not_depend_on_the_workers(manifest, expected, workers):
    with loader(manifest, workers=workers) as source:
        assert stream(source, 30) == expected
        assert len(workers_of()) == workers
    assert not workers_of()


@pytest.mark.parametrize(
    ("name", "timeout_s", "told"),
    [
        ("SIGKILL", 60.0, "was ended by SIGKILL"),
        ("SIGSTOP", 5.0, "did not answer for data.read_timeout_s=5"),
    ],
)
def test_a_lost_worker_is_replaced_and_nothing_changes(manifest, expected, name, timeout_s, told):
    with loader(manifest, workers=2, timeout_s=timeout_s) as source, at_replacement(lambda: None) as lines:
        begun = stream(source, 3)
        first, second = until(lambda: len(workers_of()) == 2 and workers_of())
        os.kill(first, getattr(signal, name))
        assert begun + stream(source, 27) == expected
        assert len(lines) == 1
        assert f"(pid {first}) {told}" in lines[0]
        assert not is_running(first)
        assert second in workers_of()
        assert len(workers_of()) == 2


@pytest.mark.parametrize(
    ("hangs", "told"),
    [(True, "did not answer for data.read_timeout_s=4"), (False, "failed (No such file or directory)")],
)
def test_work_that_fails_once_is_done_by_the_next(manifest, expected, hangs, told):
    path = shard_of(manifest)
    with (
        away(path, hangs=hangs) as restore,
        at_replacement(restore) as lines,
        loader(manifest, timeout_s=4.0) as source,
    ):
        assert stream(source, 30) == expected
    assert len(lines) == 1
    assert told in lines[0]
    assert f"at {path}: sample film/clip" in lines[0]


@pytest.mark.parametrize(
    ("hangs", "told"),
    [(True, r"did not answer for data.read_timeout_s=4"), (False, r"failed \(No such file or directory\)")],
)
def test_work_that_fails_twice_ends_the_stream_with_its_sample(manifest, hangs, told):
    path = shard_of(manifest)
    sentence = (
        rf"^data worker 0 \(pid \d+\) {told} at {path}: sample film/clip\d+, as did the one before it with the same"
    )
    with away(path, hangs=hangs), loader(manifest, timeout_s=4.0) as source:
        with pytest.raises(ValueError, match=sentence) as raised:
            stream(source, 60)
        assert "\n" not in str(raised.value)
        with pytest.raises(ValueError, match=sentence):
            next(source)
    assert not workers_of()


def test_work_that_kills_two_workers_ends_the_stream(manifest):
    with away(shard_of(manifest), hangs=True), at_replacement(lambda: None) as lines, loader(manifest) as source:
        (first,) = until(workers_of)
        os.kill(first, signal.SIGKILL)
        until(lambda: lines)
        (second,) = until(lambda: [pid for pid in workers_of() if pid != first])
        os.kill(second, signal.SIGKILL)
        with pytest.raises(ValueError, match="was ended by SIGKILL at .* as did the one before it"):
            stream(source, 60)


def test_without_workers_a_failure_is_told_at_once(manifest):
    path = shard_of(manifest)
    sentence = f"{path}: sample film/clip.* cannot be read .No such file or directory"
    with away(path, hangs=False), loader(manifest, workers=0) as source, pytest.raises(ValueError, match=sentence):
        stream(source, 60)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_sample_is_not_tried_again(tmp_path, workers):
    manifest = write_latents(tmp_path / "set", [sample(i) for i in range(30)])
    row = manifest.keys().index("film/clip0011")
    path = shard_of(manifest, row)
    data = bytearray(path.read_bytes())
    data[manifest.row(row)["latent_offset"] + 200] ^= 1
    path.write_bytes(data)
    with at_replacement(lambda: None) as lines, loader(manifest, workers=workers) as source:
        sentence = f"{path}: sample film/clip0011: its latent is damaged"
        with pytest.raises(ValueError, match=sentence):
            stream(source, 60)
    assert not lines


def test_steps_before_the_damaged_one_all_come(tmp_path):
    """At the same step on every replay, however far it is read ahead."""
    manifest = write_latents(tmp_path / "set", [sample(i) for i in range(60)])
    with loader(manifest, workers=0) as source:
        order = [{s.key for pack in next(source).packs for s in pack} for _ in range(8)]
    key = sorted(order[6] - set().union(*order[:6]))[0]
    path = shard_of(manifest, row := manifest.keys().index(key))
    data = bytearray(path.read_bytes())
    data[manifest.row(row)["text_offset"] + 100] ^= 1
    path.write_bytes(data)
    for workers in (0, 1, 2):
        with loader(manifest, workers=workers) as source:
            assert len(stream(source, 6)) == 6
            with pytest.raises(ValueError, match=f"{key}: its text is damaged"):
                next(source)


def test_a_shard_cut_off_meanwhile_is_damage_not_old_bytes(tmp_path):
    manifest = write_latents(tmp_path / "set", [sample(i, grid=(2, 4, 4)) for i in range(20)], samples_per_shard=20)
    with loader(manifest, workers=1) as source:
        stream(source, 2)
        path = shard_of(manifest)
        os.truncate(path, 1024)
        with pytest.raises(ValueError, match=f"{path}: sample film/clip.* is damaged"):
            stream(source, 60)


HOLDER = """
import sys, time
from data.loader import Loader
from data.manifest import Manifest
from data.mixture import DataSet
from data.pack import PackPlan
from data.step import ReadAhead
plan = PackPlan(DataSet.of(Manifest.read(sys.argv[1])), seed=0, tokens_per_pack=100)
source = Loader(plan, packs_per_step=2, ahead=ReadAhead(workers=2))
next(source)
print("reading", flush=True)
time.sleep(600)
"""


def shared_memory(pid):
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return [line.split()[5] for line in lines if " rw-s " in line]


def test_workers_end_with_a_killed_parent_and_leave_no_memory(manifest):
    command = [sys.executable, "-c", HOLDER, manifest.folder]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout.readline() == "reading\n"
            workers = until(lambda: len(workers_of(parent.pid)) == 2 and workers_of(parent.pid))
            for pid in (parent.pid, *workers):
                names = until(lambda pid=pid: shared_memory(pid))
                assert set(names) == {"/memfd:loader"}, "memory without a name goes with its processes"
        finally:
            parent.kill()
    until(lambda: not any(is_running(pid) for pid in workers))


def test_a_scheduler_that_signals_all_processes_leaves_the_workers_to_their_loader(manifest, expected):
    with loader(manifest, workers=2) as source, at_replacement(lambda: None) as lines:
        begun = stream(source, 1)
        for pid in until(lambda: len(workers_of()) == 2 and workers_of()):
            for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"):
                os.kill(pid, getattr(signal, name))
        assert begun + stream(source, 29) == expected
    assert not lines


def test_jobs_hold_all_reads_in_order():
    count = np.full(200, 3)
    size = np.full(200, 1 << 18)
    reads = SimpleNamespace(size=size, count=count)
    jobs = cut_into_jobs(reads, None)
    assert [n for job in jobs for n in range(job.chosen.start, job.chosen.stop)] == list(range(200))
    assert all(job.first_member == 3 * job.chosen.start for job in jobs)
    assert len(jobs) == 7, "32 reads of 256 KiB are 8 MiB"


def test_only_one_of_a_group_needs_workers(manifest):
    with loader(manifest, share=RankShare(reads=False), hand_on=lambda memory: None) as source:
        source.wait()
        assert not workers_of()
