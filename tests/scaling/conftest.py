"""What the tests of sweeps share: one set of shards, and one process with the engines imported."""

import pytest

from tests.scaling.sweep_case import write_inputs
from tests.slurm.conftest import checkout, cluster  # noqa: F401
from tests.trainer.run_case import Commands


@pytest.fixture(scope="session")
def commands(tmp_path_factory):
    with Commands(tmp_path_factory.mktemp("commands")) as server:
        yield server


@pytest.fixture(scope="session")
def inputs(tmp_path_factory):
    """A folder with `latents/` and `codec/`."""
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    return folder
