"""Compose a config once, for all ranks and all starts of a job.

    python -m slurm.compose FILE trainer.train experiment=demo seed=1
    python -m trainer.train --config FILE

What one setting takes from another is filled in; what must still be given stays open, for the command to ask for.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from data.shards import write_whole
from trainer.compose import to_saved_config, user_errors

ROOT = Path(__file__).parents[1]


@contextmanager
def configs() -> Iterator[None]:
    """Within it `compose` finds `conf/`, from any folder; in a command of Hydra's it does already."""
    if GlobalHydra.instance().is_initialized():
        yield
    else:
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            yield


def config_name(module: str) -> str:
    """What `python -m MODULE` composes; ValueError where that is not there or takes no config."""
    package, _, command = module.rpartition(".")
    files = (ROOT / f"conf/{command}.yaml", ROOT / package / f"{command}.py")
    if package not in ("trainer", "scaling") or not all(path.is_file() for path in files):
        raise ValueError(f"module={module} is no command with a config of its own, such as trainer.train")
    return command


@user_errors
def main() -> None:
    """Command line."""
    if len(sys.argv) < 3:
        raise ValueError("name a file and a module: python -m slurm.compose FILE trainer.train OVERRIDE...")
    file, module, *words = sys.argv[1:]
    with configs():
        config = compose(config_name(module), words)
    write_whole(Path(file), to_saved_config(config).encode())


if __name__ == "__main__":
    main()
