"""`make demo`: real clips -> codec -> latent shards -> DiT on four processes -> videos, by the commands a user types.

    python -m trainer.demo [--folder runs/demo]

Each phase runs once: its seconds and a hash of its command are kept in `phases.json`, and a phase whose command
and whose predecessors are unchanged is not run again. An interrupted phase goes on where it stopped.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from trainer.compose import user_errors
from trainer.demo_page import write_page

RANKS = 4
PROMPTS = (
    "a big grey rabbit stands in a green meadow",
    "a red squirrel and a flying squirrel sit on a tree branch",
    "a butterfly flies over flowers in the sunlight",
)


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One command of the demo, and what to call it in the summary."""

    name: str
    title: str
    command: tuple[str, ...]


def phases(folder: Path, cache: Path) -> list[Phase]:
    """The commands, in order. They are printed as they run, so that a user can repeat any of them."""
    clips, codec, latents, dit = (str(folder / name) for name in ("clips", "codec", "latents", "dit"))
    prompts = "prompts=[" + ",".join(f"'{prompt}'" for prompt in PROMPTS) + "]"
    python = (sys.executable, "-m")
    launch = (*python, "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}", "-m")
    shards = (f"data.folder={latents}", f"data.codec={codec}", f"folder={dit}")
    sample = (*python, "trainer.sample", f"run={dit}", f"codec={codec}")
    return [
        Phase(
            name="clips",
            title="cut real clips at scene changes",
            command=(*python, "data.demo", clips, "--cache", str(cache)),
        ),
        Phase(
            name="codec",
            title="train the video codec",
            command=(*python, "trainer.train_vae", f"clips={clips}", f"folder={codec}"),
        ),
        Phase(
            name="encode",
            title="encode clips and captions",
            command=(*python, "trainer.encode", f"clips={clips}", f"codec={codec}", f"folder={latents}"),
        ),
        Phase(
            name="dit",
            title=f"train the DiT on {RANKS} processes",
            command=(*launch, "trainer.train", "experiment=demo", *shards),
        ),
        Phase(
            name="evaluate",
            title="measure what text is worth",
            command=(*python, "trainer.evaluate", f"run={dit}", f"data.folder={latents}"),
        ),
        Phase(
            name="sample",
            title="text to video",
            command=(*sample, prompts, f"out={folder / 'videos'}"),
        ),
        Phase(
            name="animate",
            title="image to video, video to video",
            command=(*sample, prompts, f"clips={clips}", f"out={folder / 'videos'}"),
        ),
    ]


class Ledger:
    """Which phases are done, by which command, in how many seconds."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, dict[str, str | float]] = json.loads(path.read_text()) if path.is_file() else {}

    def done(self, phase: Phase, chain: str) -> bool:
        return self.rows.get(phase.name, {}).get("chain") == chain

    def record(self, phase: Phase, chain: str, seconds: float) -> None:
        earlier = float(self.rows.get(phase.name, {}).get("seconds", 0.0))
        kept = earlier if self.rows.get(phase.name, {}).get("chain") == "interrupted " + chain else 0.0
        self.rows[phase.name] = {"chain": chain, "seconds": round(kept + seconds, 1)}
        scratch = self.path.with_suffix(".tmp")
        scratch.write_text(json.dumps(self.rows, indent=1))
        scratch.replace(self.path)


def run_phases(todo: list[Phase], ledger: Ledger) -> None:
    """Run what is not done; raise ValueError naming the phase that failed."""
    chain = ""
    for number, phase in enumerate(todo, 1):
        chain = hashlib.sha256("\n".join((chain, *phase.command[1:])).encode()).hexdigest()[:16]
        label = f"[{number}/{len(todo)}] {phase.title}"
        if ledger.done(phase, chain):
            print(f"{label}: stands ({ledger.rows[phase.name]['seconds']} s)", flush=True)
            continue
        print(f"{label}\n  $ {' '.join(('python', *phase.command[1:]))}", flush=True)
        start = time.monotonic()
        try:
            code = subprocess.run(phase.command, check=False).returncode
        except KeyboardInterrupt:
            ledger.record(phase, "interrupted " + chain, time.monotonic() - start)
            raise
        if code:
            ledger.record(phase, "interrupted " + chain, time.monotonic() - start)
            raise ValueError(f"demo: «{phase.title}» ended with exit code {code}; `make demo` goes on from there")
        ledger.record(phase, chain, time.monotonic() - start)


@user_errors
def main() -> None:
    parser = argparse.ArgumentParser(description="The whole path on real clips, in about a quarter of an hour.")
    parser.add_argument("--folder", type=Path, default=Path("runs/demo"))
    parser.add_argument("--cache", type=Path, default=Path(".cache/downloads"))
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(arguments.folder / "phases.json")
    try:
        run_phases(phases(arguments.folder, arguments.cache), ledger)
    except KeyboardInterrupt:
        print("\nstopped; `make demo` goes on from here", file=sys.stderr)
        sys.exit(130)
    print(write_page(arguments.folder, ledger.rows))


if __name__ == "__main__":
    main()
