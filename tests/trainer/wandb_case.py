"""What W&B was told, read back from an offline run's `.wandb` file: LevelDB's log format of 32 KiB blocks."""

import json
import struct
import subprocess
import sys
import zlib
from dataclasses import dataclass, field
from pathlib import Path

from wandb.proto import wandb_internal_pb2 as pb

from tests.trainer.run_case import environment

BLOCK = 32768


def sync(folder, *more):
    """Run `python -m trainer.wandb_sync` on a run folder."""
    command = [sys.executable, "-m", "trainer.wandb_sync", str(folder), *more]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120, check=False)


def payloads(path):
    data = path.read_bytes()
    ident, magic, _ = struct.unpack("<4sHB", data[:7])
    assert (ident, magic) == (b":W&B", 0xBEE1)
    place, whole = 7, b""
    while place + 7 <= len(data):
        if (left := BLOCK - place % BLOCK) < 7:
            place += left
            continue
        crc, size, kind = struct.unpack("<IHB", data[place : place + 7])
        if kind == size == 0:
            place += left
            continue
        part = data[place + 7 : place + 7 + size]
        if len(part) != size or zlib.crc32(part, zlib.crc32(bytes([kind]))) != crc:
            return  # the torn end of a killed process
        place += 7 + size
        whole = part if kind in (1, 2) else whole + part
        if kind in (1, 4):
            yield whole


@dataclass
class Told:
    """What one `.wandb` file holds."""

    run: object = None
    config: dict = field(default_factory=dict)
    history: list = field(default_factory=list)
    """A dict a step; what is nested has its keys joined by a dot."""
    metrics: dict = field(default_factory=dict)
    """What `define_metric` was given, by name."""
    alerts: list = field(default_factory=list)
    artifacts: list = field(default_factory=list)
    exit_code: int | None = None


def read_file(path):
    told = Told()
    for payload in payloads(path):
        record = pb.Record()
        record.ParseFromString(payload)
        match record.WhichOneof("record_type"):
            case "run":
                told.run = record.run
                told.config |= {one.key: json.loads(one.value_json) for one in record.run.config.update}
            case "config":
                told.config |= {one.key: json.loads(one.value_json) for one in record.config.update}
            case "history":
                items = record.history.item
                told.history.append({".".join(one.nested_key) or one.key: json.loads(one.value_json) for one in items})
            case "metric":
                told.metrics[record.metric.name or record.metric.glob_name] = record.metric
            case "alert":
                told.alerts.append(record.alert)
            case "request" | "artifact":
                if record.HasField("artifact"):
                    told.artifacts.append(record.artifact)
            case "exit":
                told.exit_code = record.exit.exit_code
    return told


def offline_file(folder):
    """The one offline run that a run folder holds."""
    (path,) = Path(folder).glob("wandb/offline-run-*/*.wandb")
    return path


def read_offline(folder):
    return read_file(offline_file(folder))


def flat(row, prefix=""):
    """A row of the record as W&B keeps it: nested keys joined by a dot."""
    leaves = {}
    for key, value in row.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return leaves


def expected_history(rows):
    """What W&B should hold of a record: one entry a step, of everything that was written at it; events apart."""
    entries = {}
    for row in [row for row in rows if "alert" not in row]:
        numbers = {key: value for key, value in row.items() if key not in ("samples", "checkpoint")}
        entries.setdefault(row["step"], {}).update(flat(numbers))
    return entries


def numbers_of(history):
    """The same of what was read back; what is W&B's own, media and copies for other axes are left out."""
    others = ("_", "samples/", "by_tokens/", "by_flops/")
    return {
        entry["step"]: {key: value for key, value in entry.items() if not key.startswith(others)} for entry in history
    }
