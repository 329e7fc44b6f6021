"""`make demo`: real clips -> codec -> latent shards -> DiT on four processes -> videos, by the commands a user types.

    python -m trainer.demo [--folder runs/demo]

Each phase runs once: what it took and a hash of its command are kept in `phases.json`, and a phase whose command,
result and predecessors stand is not run again. An interrupted phase goes on where it stopped.
"""

import argparse
import hashlib
import json
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

from parallel.launch import child_environment
from trainer.compose import user_errors
from trainer.demo_page import ATTRIBUTION, write_page
from trainer.signals import EXIT_STOPPED

RANKS = 4
PYTHON = (sys.executable, "-m")
PROMPTS = (
    "a big grey rabbit stands in a green meadow",
    "a red squirrel and a flying squirrel sit on a tree branch",
    "a butterfly flies over flowers in the sunlight",
)
HELDOUT_CLIP = "bbb-shot-119"
"""A clip no network was trained on: a big grey rabbit holds a flying squirrel."""
HELDOUT_PROMPT = "a big grey rabbit holds a flying squirrel"
REPAINT_PROMPT = "a big grey rabbit in the forest at night"


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One command of the demo, what to call it in the summary, and what it leaves."""

    name: str
    title: str
    command: tuple[str, ...]
    result: Path


def phases(folder: Path, cache: Path) -> list[Phase]:
    """The commands, in order. They are printed as they run, so that a user can repeat any of them."""
    return [*training_phases(folder, cache), *sampling_phases(folder)]


def training_phases(folder: Path, cache: Path) -> list[Phase]:
    """From footage to a trained and measured model."""
    clips, codec, latents, dit = (folder / name for name in ("clips", "codec", "latents", "dit"))
    launch = (*PYTHON, "parallel.torchrun", "--standalone", f"--nproc-per-node={RANKS}", "-m")
    return [
        Phase(
            name="clips",
            title="cut real clips at scene changes",
            command=(*PYTHON, "data.demo", str(clips), "--cache", str(cache)),
            result=clips / "demo.json",
        ),
        Phase(
            name="codec",
            title="train the video codec",
            command=(*PYTHON, "trainer.train_vae", f"clips={clips}", f"folder={codec}", f"attribution='{ATTRIBUTION}'"),
            result=codec / "metrics.json",
        ),
        Phase(
            name="encode",
            title="encode clips and captions",
            command=(
                *(*PYTHON, "trainer.encode", f"clips={clips}", f"codec={codec}", f"folder={latents}"),
                "replace=true",
            ),
            result=latents / "manifest.parquet",
        ),
        Phase(
            name="dit",
            title=f"train the DiT on {RANKS} processes",
            command=(
                *(*launch, "trainer.train", "experiment=demo", "parallel=tp2_pp2"),
                *(f"data.folder={latents}", f"data.codec={codec}", f"folder={dit}"),
            ),
            result=dit / "checkpoints",
        ),
        Phase(
            name="evaluate",
            title="measure what captions are worth",
            command=(*PYTHON, "trainer.evaluate", f"run={dit}"),
            result=dit / "captions.json",
        ),
    ]


def sampling_phases(folder: Path) -> list[Phase]:
    """Videos out of the trained model: from text, from an image, from a video."""
    clip, videos = folder / "heldout" / f"{HELDOUT_CLIP}.mp4", folder / "videos"
    shard = folder / "clips" / "clips-000000.tar"
    sample = (*PYTHON, "trainer.sample", f"run={folder / 'dit'}")
    prompts = ",".join(f"'{prompt}'" for prompt in PROMPTS)
    return [
        Phase(
            name="sample",
            title="text to video",
            command=(*sample, f"prompts=[{prompts}]", f"out={videos / 'text'}"),
            result=videos / "text" / "sheet.png",
        ),
        Phase(
            name="clip",
            title="take out a held-out clip",
            command=("tar", "--extract", f"--file={shard}", f"--directory={clip.parent}", clip.name),
            result=clip,
        ),
        Phase(
            name="animate",
            title="image to video: the clip's first frame is given",
            command=(*sample, f"prompts='{HELDOUT_PROMPT}'", f"image={clip}", f"out={videos / 'image'}"),
            result=videos / "image" / "sheet.png",
        ),
        Phase(
            name="repaint",
            title="video to video: from 0.6 of the way to noise",
            command=(
                *(*sample, f"prompts='{REPAINT_PROMPT}'", f"source={clip}", "strength=0.6"),
                f"out={videos / 'video'}",
            ),
            result=videos / "video" / "sheet.png",
        ),
    ]


@dataclass(kw_only=True)
class Entry:
    """What the ledger knows of a phase; seconds of interrupted attempts are added up."""

    chain: str
    seconds: float
    is_done: bool


class Ledger:
    """Which phases are done, by which command, in how many seconds."""

    def __init__(self, path: Path) -> None:
        self.path = path
        rows = json.loads(path.read_text()) if path.is_file() else {}
        self.entries = {name: Entry(**row) for name, row in rows.items()}

    def stands(self, phase: Phase, chain: str) -> bool:
        entry = self.entries.get(phase.name)
        return entry is not None and entry.is_done and entry.chain == chain and phase.result.exists()

    def record(self, phase: Phase, chain: str, seconds: float, *, is_done: bool) -> None:
        before = self.entries.get(phase.name)
        if before is not None and before.chain == chain and not before.is_done:
            seconds += before.seconds
        self.entries[phase.name] = Entry(chain=chain, seconds=round(seconds, 3), is_done=is_done)
        scratch = self.path.with_suffix(".tmp")
        scratch.write_text(json.dumps({name: asdict(entry) for name, entry in self.entries.items()}, indent=1))
        scratch.replace(self.path)

    @property
    def seconds(self) -> dict[str, float]:
        return {name: entry.seconds for name, entry in self.entries.items()}


def run_phases(todo: list[Phase], ledger: Ledger) -> None:
    """Run what does not stand, and all that follows it.

    Raises:
        ValueError: a phase failed; the message names it.
        Stopped: a phase was asked to stop, and has saved.
    """
    chain, stands = "", True
    for number, phase in enumerate(todo, 1):
        chain = hashlib.sha256("\n".join((chain, *phase.command[1:])).encode()).hexdigest()[:16]
        stands = stands and ledger.stands(phase, chain)
        label = f"[{number}/{len(todo)}] {phase.title}"
        if stands:
            print(f"{label}: stands ({ledger.seconds[phase.name]:.0f} s)", flush=True)
            continue
        print(f"{label}\n  $ {shlex.join((Path(phase.command[0]).name, *phase.command[1:]))}", flush=True)
        start = time.monotonic()
        ledger.record(phase, chain, 0.0, is_done=False)
        try:
            code = run_command(phase.command)
        except BaseException:
            ledger.record(phase, chain, time.monotonic() - start, is_done=False)
            raise
        ledger.record(phase, chain, time.monotonic() - start, is_done=code == 0)
        if code == EXIT_STOPPED:
            raise Stopped
        if code:
            raise ValueError(f"demo: «{phase.title}» ended with exit code {code}; `make demo` goes on from there")


def run_command(command: tuple[str, ...]) -> int:
    """Exit code of a command. Ctrl-C leaves it the time to save: a terminal has told it already, SIGTERM is passed on.

    Raises:
        Stopped: after the command has ended, where a stop was asked for.
    """
    with subprocess.Popen(command, env=child_environment()) as child:
        try:
            return child.wait()
        except KeyboardInterrupt:
            print("stopping: the phase saves first; Ctrl-C again to leave at once", file=sys.stderr, flush=True)
        except Terminated:
            child.terminate()
        try:
            child.wait()
        except (KeyboardInterrupt, Terminated):
            child.terminate()
            child.wait()
    raise Stopped


class Stopped(Exception):
    """A stop was asked for, and the running phase has ended."""


class Terminated(Exception):
    """SIGTERM."""


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


@user_errors
def main() -> None:
    parser = argparse.ArgumentParser(description="The whole path on real clips, in about a quarter of an hour.")
    parser.add_argument("--folder", type=Path, default=Path("runs/demo"))
    parser.add_argument("--cache", type=Path, default=Path(".cache/downloads"))
    arguments = parser.parse_args()
    if arguments.folder.exists() and not arguments.folder.is_dir():
        raise ValueError(f"--folder={arguments.folder} is a file: give a folder for the demo's results")
    signal.signal(signal.SIGTERM, _terminate)
    (arguments.folder / "heldout").mkdir(parents=True, exist_ok=True)
    ledger = Ledger(arguments.folder / "phases.json")
    try:
        run_phases(phases(arguments.folder, arguments.cache), ledger)
    except (KeyboardInterrupt, Stopped, Terminated):
        print("stopped; `make demo` goes on from here", file=sys.stderr)
        sys.exit(130)
    print(write_page(arguments.folder, ledger.seconds))


if __name__ == "__main__":
    main()
