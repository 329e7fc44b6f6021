"""What W&B costs a training run: whole runs with W&B off, offline, and online with servers good and bad.

    CUDA_VISIBLE_DEVICES= python -m bench.wandb_cost [--steps 100] [--rounds 5]

In a round each way trains once, in an order that changes, on one thread and with a row of the record at every step. A
run's figure is its time from the first row to the last over the steps between them, W&B's start included; a ratio is
that to the round's run without W&B. Every run must have its rows in the record, and the server that accepts must have
them all at the end. `taskset -c 0` before the command puts a run and what shows it on one core, as on a node whose
cores are all busy.
"""

import argparse
import logging
import os
import random
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import hydra
import torch

import trainer.train
from bench.wandb_server import WandbServer
from data.latents import EncodedSample, LatentConfig, LatentWriter
from model.codec import CodecConfig, build_codec, codec_identity, save_codec
from model.codec_patch import PatchCodecConfig
from trainer.metrics import read_metrics

CONF = Path(__file__).parents[1] / "conf"
TEXT_DIM, TEXT_TOKENS, SAMPLES = 384, 12, 24
SETTINGS = {
    "data.tokens_per_pack": 256,
    "data.packs_per_step": 2,
    "data.workers": 0,
    "run.log_every": 1,
    "run.checkpoint_every": 0,
    "run.evaluate_every": 0,
    "schedule.warmup_steps": 2,
}


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a run is shown, and for how long it waits at its end."""

    mode: str
    url: str | None = None
    finish_s: float = 2.0


@dataclass(frozen=True, kw_only=True)
class Taken:
    """Seconds of a run: for each of its steps on average, of its median step, and from its start to its end."""

    mean_s: float
    median_s: float
    whole_s: float


def write_inputs(folder: Path) -> None:
    """A codec and latent shards of noise."""
    torch.manual_seed(0)
    sizes = PatchCodecConfig(width=8, encoder_blocks=1, decoder_blocks=1)
    save_codec(build_codec(CodecConfig(patch=sizes)), folder / "codec")
    (folder / "latents").mkdir()
    writer = LatentWriter(folder / "latents", LatentConfig(samples_per_shard=SAMPLES), patch_size=(1, 2, 2))
    for number in range(SAMPLES):
        writer.write(
            EncodedSample(
                key=f"clip{number}",
                latent_CTHW=torch.randn(16, 1 + number % 4, 8, 8),
                text={"caption": torch.randn(TEXT_TOKENS, TEXT_DIM)},
                captions={"caption": f"clip {number}"},
                source=f"shot{number}",
                split="train",
                fps=16.0,
                meta={},
            )
        )
    identity = {"codec": codec_identity(folder / "codec"), "text": "t" * 64, "inputs": "i" * 64, "fps": 16.0}
    identity |= {"strides": (4, 8, 8), "latent_channels": 16, "text_dim": TEXT_DIM, "caption_kinds": ("caption",)}
    writer.finish(null_text=torch.zeros(1, TEXT_DIM), identity=identity)


@contextmanager
def ways() -> Iterator[dict[str, Way]]:
    """All ways to show a run; the servers listen inside."""
    with WandbServer() as server, socket.socket() as silent, socket.socket() as closed:
        silent.bind(("127.0.0.1", 0))
        silent.listen(50)
        closed.bind(("127.0.0.1", 0))
        blocks, refuses = (f"http://127.0.0.1:{one.getsockname()[1]}" for one in (silent, closed))
        yield {
            "off": Way(mode="disabled"),
            "offline": Way(mode="offline", finish_s=60.0),
            "online": Way(mode="online", url=server.url, finish_s=60.0),
            "online, server blocks": Way(mode="online", url=blocks),
            "online, server refuses": Way(mode="online", url=refuses),
        }
        received = sorted({len(run.history) for run in server.runs.values()})
        print(f"  rows of each run that the server has which accepts: {', '.join(map(str, received))}")
        if server.unknown:
            raise SystemExit(f"the client asked for what the server here does not know: {server.unknown}")


def train(way: Way, folder: Path, steps: int, model: str) -> Taken:
    """Train in a fork of this process, which has imported everything; what it took."""
    settings = SETTINGS | {
        "name": folder.name,
        "folder": folder,
        "data.folder": folder.parent / "latents",
        "data.codec": folder.parent / "codec",
        "model": model,
        "run.steps": steps,
        "run.threads_per_rank": 1,
        "wandb.mode": way.mode,
        "wandb.finish_s": way.finish_s,
    }
    started = time.perf_counter()
    if not (pid := os.fork()):
        code = 1
        try:
            if way.url is not None:
                os.environ |= {"WANDB_BASE_URL": way.url, "WANDB_API_KEY": "a" * 40}
            with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
                config = hydra.compose("train", [f"{name}={value}" for name, value in settings.items()])
            code = trainer.train.run(trainer.train.read(config))
        finally:
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"the run in {folder} failed")
    whole = time.perf_counter() - started
    times = [row["time"] for row in read_metrics(folder) if "loss" in row]
    if len(times) != steps:
        raise SystemExit(f"{folder}/metrics.jsonl has {len(times)} of {steps} steps")
    took = [after - before for before, after in pairwise(times)]
    return Taken(mean_s=statistics.mean(took), median_s=statistics.median(took), whole_s=whole)


def told(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.3f} (quartiles {low:.3f} to {high:.3f})"


def report(taken: dict[str, list[Taken]]) -> None:
    for name, runs in taken.items():
        pairs = list(zip(runs, taken["off"], strict=True))
        print(
            f"  {name:23s} {1000 * statistics.median(one.mean_s for one in runs):6.1f} ms a step   "
            f"/ off {told([one.mean_s / off.mean_s for one, off in pairs])}   "
            f"median step / off {told([one.median_s / off.median_s for one, off in pairs])}   "
            f"whole run {statistics.median(one.whole_s for one in runs):.1f} s"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="Step time with W&B off, offline and online, over that with it off.")
    parser.add_argument("--model", default="tiny", help="a file of conf/model, without .yaml")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.steps < 10 or arguments.rounds < 2:
        parser.error("at least 10 steps are trained, and at least 2 rounds are measured")
    logging.disable(logging.WARNING)
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    print(f"{cores} cores, load {load:.1f}; {arguments.model}, {arguments.steps} steps", flush=True)
    with tempfile.TemporaryDirectory() as scratch, ways() as known:
        write_inputs(Path(scratch))
        taken: dict[str, list[Taken]] = {name: [] for name in known}
        for number in range(arguments.rounds):
            for name in random.Random(number).sample(list(known), len(known)):
                folder = Path(scratch) / f"{number}-{name.replace(', ', '-').replace(' ', '-')}"
                one = train(known[name], folder, arguments.steps, arguments.model)
                taken[name].append(one)
                print(f"    {number + 1}. {name}: {1000 * one.mean_s:.1f} ms a step, {one.whole_s:.1f} s", flush=True)
        report(taken)


if __name__ == "__main__":
    main()
