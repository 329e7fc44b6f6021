"""The runs of a sweep as one SLURM array: a task a cell, each through `slurm/train.sbatch`."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from scaling.grid import PlannedCell

SCRIPT = Path("slurm/train.sbatch")
_OWN = ("--output", "--job-name")


def write_array(folder: Path, cells: Sequence[PlannedCell]) -> Path:
    """Write the words of each cell, one a line, and a script to submit from the root of the checkout.

    ValueError where that is not the working directory.
    """
    if not SCRIPT.is_file():
        raise ValueError(f"{SCRIPT} is not here ({Path.cwd()}): start the sweep in the root of the checkout")
    words = folder / "words"
    words.mkdir(parents=True, exist_ok=True)
    for cell in cells:
        (words / f"{cell.name}.txt").write_text("".join(f"{word}\n" for word in cell.words), encoding="utf-8")
    settings = [line for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH") and not _is_own(line)]
    names = " ".join(shlex.quote(cell.name) for cell in cells)
    path = folder / "array.sbatch"
    path.write_text(
        "\n".join(
            [
                "#!/usr/bin/env bash",
                f"# sbatch [SLURM's options] {path}        from the root of the checkout",
                *settings,
                f"#SBATCH --job-name={folder.name}",
                f"#SBATCH --array=0-{len(cells) - 1}",
                f"#SBATCH --output={folder}/%A_%a.log",
                "set -euo pipefail",
                f"cells=({names})",
                f'mapfile -t words < {shlex.quote(str(words))}/"${{cells[$SLURM_ARRAY_TASK_ID]}}.txt"',
                f'exec bash {SCRIPT} "${{words[@]}}"',
                "",
            ]
        ),
        encoding="utf-8",
    )
    return path


def _is_own(line: str) -> bool:
    return line.removeprefix("#SBATCH").strip().startswith(_OWN)
