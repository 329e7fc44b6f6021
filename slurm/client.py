"""SLURM's own programs, asked."""

import subprocess

_PATIENCE_S = 60.0


def ask(*command: str) -> str:
    """What the program prints; ValueError with its own words where it refuses, or where there is none here."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
    except FileNotFoundError as error:
        raise ValueError(f"there is no {command[0]} on PATH: use a node from which jobs are submitted") from error
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"{command[0]} did not answer in {_PATIENCE_S:.0f} s: is SLURM's controller up?") from error
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["without a word"]
        raise ValueError(f"{' '.join(command)} failed: {'; '.join(said)}")
    return done.stdout.strip()
