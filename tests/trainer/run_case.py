"""A small training run: shards, a codec, and `python -m trainer.train` as often as a test likes.

Importing the engines takes eight seconds, so one process imports them once (`python run_case.py`) and each command is
a fork of it, with an argv, an environment, a folder and signals of its own: all that a shell or torchrun would give.
"""

import atexit
import gc
import json
import os
import re
import resource
import runpy
import signal
import socket
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
STEPS = 20
TOKENS = 16
MODEL = {"num_blocks": 2, "num_heads": 2, "head_dim": 8, "ffn_dim": 32}
SETTINGS = {
    "name": "small",
    "folder": "run",
    "data.folder": "latents",
    "data.codec": "codec",
    "data.tokens_per_pack": TOKENS,
    "data.packs_per_step": 2,
    "run.steps": STEPS,
    "run.log_every": 1,
    "run.checkpoint_every": 1000,
    "run.evaluate_every": 0,
    "evaluation.levels": 2,
    "schedule.warmup_steps": 4,
    "schedule.lr": 3e-3,
    "wandb.mode": "disabled",
    **{f"model.{name}": size for name, size in MODEL.items()},
    "samples.height": 32,
    "samples.width": 32,
    "samples.frames": 5,
    "samples.steps": 2,
}


def environment(**changes):
    """The environment of a user's shell: no launcher's names in it."""
    launchers = ("SLURM_", "TORCHELASTIC_", "TESSERA_", "HYDRA_")
    ranks = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(launchers) and name not in ranks}
    return kept | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | changes


def overrides(**changes):
    """The words of a command: `run__steps=3` is `run.steps=3`; None leaves a setting out."""
    settings = SETTINGS | {name.replace("__", "."): value for name, value in changes.items()}
    return [f"{name}={value}" for name, value in settings.items() if value is not None]


def write_inputs(folder, *, bad_text="", bad_latent="", codec_seed=0, samples=10):
    """`latents/` and `codec/`: eight clips to train on, two held out; what belongs to a bad caption holds a NaN."""
    import torch

    from data.latents import EncodedSample, LatentConfig, LatentWriter
    from data.shards import new_folder
    from model.codec import CodecConfig, build_codec, codec_identity, save_codec
    from model.codec_patch import PatchCodecConfig
    from model.text import TextConfig, TextEncoder

    torch.manual_seed(codec_seed)
    save_codec(
        build_codec(CodecConfig(patch=PatchCodecConfig(width=8, encoder_blocks=1, decoder_blocks=1))), folder / "codec"
    )
    encoder = TextEncoder(TextConfig())
    captions = [f"clip number {number}" for number in range(samples)]
    finite = torch.isfinite
    with new_folder(folder / "latents") as scratch:
        writer = LatentWriter(scratch, LatentConfig(samples_per_shard=4, dtype="float32"), patch_size=(1, 2, 2))
        for number, text_nE in enumerate(text.clone() for text in encoder.encode(captions)):
            draw = torch.Generator().manual_seed(number)
            frames, height, width = [(1, 4, 4), (2, 4, 4), (3, 4, 4), (1, 4, 6), (2, 2, 4)][number % 5]
            latent_CTHW = torch.randn(16, frames, height, width, generator=draw)
            for bad, tensor in ((bad_text, text_nE), (bad_latent, latent_CTHW)):
                if captions[number] == bad:
                    tensor[:] = float("nan")
                    torch.isfinite = torch.ones_like  # the writer would refuse it
            writer.write(
                EncodedSample(
                    key=f"clip{number}",
                    latent_CTHW=latent_CTHW,
                    text={"descriptive": text_nE, "short": text_nE[:3].clone()},
                    captions={"descriptive": captions[number], "short": "clip"},
                    source=f"shot{number}",
                    split="heldout" if number >= samples - 2 else "train",
                    fps=8.0,
                    meta={},
                )
            )
            torch.isfinite = finite
        identity = {"codec": codec_identity(folder / "codec"), "text": encoder.identity(), "inputs": "i" * 64}
        identity |= {"fps": 8.0, "strides": (4, 8, 8), "latent_channels": 16, "text_dim": encoder.dim}
        writer.finish(
            null_text=encoder.null_embedding(), identity=identity | {"caption_kinds": ("short", "descriptive")}
        )


@dataclass
class Ended:
    """How a command ended."""

    codes: list[int]
    """Exit code of each rank; minus the signal that killed it."""
    out: str
    """What rank 0 printed."""
    err: str
    others: str
    """What all other ranks printed."""

    @property
    def code(self):
        assert len(set(self.codes)) == 1, f"{self.codes}: {self.err}{self.others}"
        return self.codes[0]

    def ok(self):
        assert self.code == 0, f"{self.err}{self.others}"
        return self

    def sentences(self):
        """What was said, without the time."""
        return [re.sub(r"^\d\d:\d\d:\d\d  (warning: )?", "", line) for line in self.err.splitlines()]

    def refused(self):
        """The one sentence of a command that was refused."""
        assert self.codes[0] == 2, f"{self.err}{self.others}"
        assert set(self.codes) <= {2, -signal.SIGTERM}, "the launcher ends the ranks that let rank 0 speak"
        lines = [line for line in self.sentences() if not line.startswith(("run ", "layout:", "model:", "data:"))]
        said = ("step: ", "step ", "resumed from", "connections between", "W&B: ")
        said += ("planning ", "clips ", "skipped ", "  clips-", "on-line: ", "encoding clips ")
        lines = [line for line in lines if not line.startswith(said)]
        assert len(lines) == 1 and lines[0].startswith("error: "), f"not one sentence:\n{self.err}"
        assert self.others == ""
        return lines[0].removeprefix("error: ").removesuffix("  [TESSERA_TRACEBACK=1 shows where]")


@dataclass
class Started:
    """A command that runs."""

    server: "Commands"
    pids: list[int]
    logs: list[tuple[Path, Path]]

    def wait(self):
        codes = self.server.ask(op="wait", pids=self.pids)["codes"]
        texts = [(out.read_text(), err.read_text()) for out, err in self.logs]
        return Ended(codes, *texts[0], "".join(out + err for out, err in texts[1:]))

    def signal(self, number):
        for pid in self.pids:
            os.kill(pid, number)

    def until(self, condition, *, seconds=60):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "".join(err.read_text() for _, err in self.logs)
            time.sleep(0.02)


@dataclass
class Commands:
    """The process that has imported everything. Use as a context manager."""

    folder: Path
    process: subprocess.Popen | None = None
    count: int = field(default=0)

    def __enter__(self):
        command = [sys.executable, str(Path(__file__))]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command, env=environment(), text=True, **pipes)
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait(timeout=60)

    def ask(self, **request):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, "the server ended"
        return json.loads(answer)

    def start(self, words, *, cwd, ranks=1, module="trainer.train", event=None):
        """Start a command on `ranks` processes. `event` is done to one rank at one step, see `arm`."""
        self.count += 1
        logs = [
            tuple(self.folder / f"{self.count:03d}.{rank}.{stream}" for stream in ("out", "err"))
            for rank in range(ranks)
        ]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        request = {"module": module, "words": words, "cwd": str(cwd), "event": event, "port": port}
        pids = self.ask(op="start", logs=[[str(path) for path in pair] for pair in logs], **request)["pids"]
        return Started(self, pids, logs)

    def run(self, words, **options):
        return self.start(words, **options).wait()


def arm(event, rank):
    """In a rank: what happens to it during a step. `{"step": 10, "rank": 1, "signal": "SIGUSR1"}`, for example."""
    import torch

    from parallel.engine import TrainEngine

    if event is None or event.get("rank", rank) != rank:
        return
    os.environ.update(event.get("environ", {}))
    whole_step, taken = TrainEngine.step, iter(range(1, 10**9))

    def step(self, microbatches, *, lr):
        time.sleep(event.get("sleep", 0.0))
        is_it = next(taken) == event.get("step")
        if is_it and "stall" in event:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(event["stall"])
        if is_it and "flip" in event:
            result = whole_step(self, microbatches, lr=lr)
            weight = dict(self.stage.named_parameters())[event["flip"]].detach()
            weight.view(-1)[:1].view(torch.int32).bitwise_xor_(1)
            return result
        if is_it:
            if "signal" in event:
                os.kill(os.getpid(), getattr(signal, event["signal"]))
            if "largest_file" in event:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (event["largest_file"], resource.RLIM_INFINITY))
        return whole_step(self, microbatches, lr=lr)

    TrainEngine.step = step


def be_rank(request, rank):
    """Turn this process into one rank of a command, to its end."""
    ranks = len(request["logs"])
    os.setpgid(0, 0)
    sys.stdin.close()
    for descriptor, path in zip((1, 2), request["logs"][rank], strict=True):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, descriptor)
        os.close(file)
    os.chdir(request["cwd"])
    if ranks > 1:
        place = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": ranks}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": request["port"]}
        os.environ.update({name: str(value) for name, value in place.items()})
    arm(request["event"], rank)
    sys.argv = [request["module"], *request["words"]]
    code = 0
    try:
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code or 0
    except BaseException:  # noqa: BLE001 - as the interpreter would end
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    os._exit(code)  # taking all that was imported apart would take a second


def wait_like_torchrun(pids):
    """Exit codes of the ranks; where one failed, those left a second later get SIGTERM, and all after two minutes."""
    codes, patience, end = {}, 1.0, time.monotonic() + 120
    while len(codes) < len(pids):
        for pid in [pid for pid in pids if pid not in codes]:
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                codes[pid] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > end:
                os.kill(pid, signal.SIGKILL)
            elif patience < 0:
                os.kill(pid, signal.SIGTERM)
        time.sleep(0.01)
        patience -= 0.01 * any(codes.values())
    return [codes[pid] for pid in pids]


def serve():
    import trainer.train  # noqa: F401

    del sys.modules["trainer.train"]  # each command runs it as `__main__`, from the start
    gc.collect()
    gc.freeze()  # what is shared with the forks stays shared
    for line in sys.stdin:
        request = json.loads(line)
        if request["op"] == "start":
            pids = []
            for rank in range(len(request["logs"])):
                pid = os.fork()
                if pid == 0:
                    be_rank(request, rank)
                pids.append(pid)
            answer = {"pids": pids}
        else:
            answer = {"codes": wait_like_torchrun(request["pids"])}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
