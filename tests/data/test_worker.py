import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import xxhash

from data.worker import Files, Work, do_work, progress_word, read_of_word

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "numpy", "pyarrow", "fsspec", "deepspeed", "webdataset", "safetensors", "multiprocessing", "asyncio"}


def words(*numbers):
    return memoryview(b"".join(number.to_bytes(8, "little") for number in numbers)).cast("Q")


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "0.tar"
    path.write_bytes(b"".join(hashlib.sha512(str(i).encode()).digest() for i in range(64)))
    return path


def work(shard, members, *, start=0, size=4096, at=64):
    """One read of a shard, with members `(offset, size)`."""
    data = shard.read_bytes()
    checks = [n for o, s in members for n in (at + o - start, s, xxhash.xxh3_64_intdigest(data[o : o + s]))]
    reads = words(0, start, size, at, len(members))
    return Work(job=3, shards=[(None, str(shard))], reads=reads, checks=words(*checks))


def test_work_is_the_same_after_a_message(shard):
    sent = work(shard, [(0, 100), (600, 7)])
    received = Work.decode(sent.encode())
    assert (received.job, received.own_memory) == (3, False)
    assert [list(pair) for pair in received.shards] == [[None, str(shard)]]
    assert received.reads.tolist() == sent.reads.tolist()
    assert received.checks.tolist() == sent.checks.tolist()


def test_bytes_come_to_their_place_and_are_checked(shard):
    memory, begun = bytearray(8192), []
    assert do_work(work(shard, [(0, 100), (600, 7)]), memoryview(memory), Files(), begun.append) == []
    assert memory[64 : 64 + 4096] == shard.read_bytes()[:4096]
    assert begun == [0]
    assert not any(memory[:64])


def test_damaged_members_are_named(shard):
    given = work(shard, [(0, 100), (600, 7), (700, 10)])
    data = bytearray(shard.read_bytes())
    data[603] ^= 4
    shard.write_bytes(data)
    assert do_work(given, memoryview(bytearray(8192)), Files(), lambda read: None) == [1]


def test_a_file_that_was_made_again_under_its_name_is_read_anew(shard):
    files, given, data = Files(), work(shard, [(0, 100), (600, 7)]), shard.read_bytes()
    shard.write_bytes(bytes(4096))
    assert do_work(given, memoryview(bytearray(8192)), files, lambda read: None) == [0, 1]
    shard.unlink()
    shard.write_bytes(data)
    memory = bytearray(8192)
    assert do_work(given, memoryview(memory), files, lambda read: None) == []
    assert memory[64 : 64 + 100] == data[:100]


def test_what_is_not_there_is_damaged_though_the_right_bytes_lie_in_memory(shard):
    given, memory = work(shard, [(0, 100), (4000, 96)]), bytearray(8192)
    memory[64 : 64 + 4096] = shard.read_bytes()[:4096]
    os.truncate(shard, 4050)
    assert do_work(given, memoryview(memory), Files(), lambda read: None) == [1]


def test_progress_tells_the_read_of_its_own_job_only():
    assert read_of_word(progress_word(7, 5), 7) == 5
    assert read_of_word(progress_word(6, 5), 7) == 0
    assert read_of_word(0, 7) == 0


def test_a_worker_imports_next_to_nothing():
    command = [sys.executable, "-X", "importtime", "-c", "import data.worker"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = [line.split("|") for line in done.stderr.splitlines() if line.startswith("import time:")]
    names = {name.strip().partition(".")[0] for *_, name in lines}
    assert not names & HEAVY
    assert "xxhash" in names


def test_a_worker_starts_in_little_time():
    """Of a processor, so that a busy machine changes little."""
    seconds = []
    for _ in range(5):
        child = subprocess.Popen([sys.executable, "-c", "import data.worker"], cwd=ROOT)
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        assert child.returncode == 0
        seconds.append(used.ru_utime + used.ru_stime)
    assert min(seconds) < 0.15, seconds
