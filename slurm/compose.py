"""Compose a config once, for all ranks and all starts of a job.

    python -m slurm.compose trainer.train experiment=demo seed=1 > FILE
    python -m trainer.train --config FILE

What one setting takes from another is filled in; what must still be given stays open, for the command to ask for.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from trainer.compose import user_errors

ROOT = Path(__file__).parents[1]


@contextmanager
def configs() -> Iterator[None]:
    """Within it `compose` finds `conf/`, from any folder."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield


def require_command(module: str) -> None:
    """ValueError where `python -m MODULE` is not there or takes no config."""
    package, _, command = module.rpartition(".")
    files = (ROOT / f"conf/{command}.yaml", ROOT / package / f"{command}.py")
    if package not in ("trainer", "scaling") or not all(path.is_file() for path in files):
        raise ValueError(f"module={module} is no command with a config of its own, such as trainer.train")


def compose_run(module: str, words: Sequence[str]) -> DictConfig:
    """The config of `python -m MODULE WORDS`."""
    return compose(module.rpartition(".")[2], list(words))


@user_errors
def main() -> None:
    """Write it to stdout, with what one setting takes from another filled in."""
    if len(sys.argv) < 2:
        raise ValueError("name a module: python -m slurm.compose trainer.train OVERRIDE...")
    module, *words = sys.argv[1:]
    require_command(module)
    with configs():
        print(OmegaConf.to_yaml(compose_run(module, words), resolve=True), end="")


if __name__ == "__main__":
    main()
