"""Which version of the program runs."""

import subprocess
from pathlib import Path

_ROOT = Path(__file__).parents[1]
_TIMEOUT_S = 10.0


def code_version(root: Path = _ROOT) -> dict[str, str | bool]:
    """The commit of a checkout, and whether tracked files differ from it; unknown where git does not say."""
    try:
        commit, changed = (_git(root, *words) for words in (("rev-parse", "HEAD"), ("diff", "--name-only", "HEAD")))
    except (OSError, subprocess.SubprocessError):
        return {"code.commit": "unknown"}
    return {"code.commit": commit, "code.changed": bool(changed)}


def _git(root: Path, *words: str) -> str:
    command = ["git", "-C", str(root), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True)
    return done.stdout.strip()
