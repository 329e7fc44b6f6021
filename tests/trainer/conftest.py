"""What the tests of the training run share: one process with the engines imported, and one set of shards."""

import pytest

from tests.trainer import online_case
from tests.trainer.run_case import Commands, write_inputs


@pytest.fixture(scope="session")
def commands(tmp_path_factory):
    with Commands(tmp_path_factory.mktemp("commands")) as server:
        yield server


@pytest.fixture(scope="session")
def inputs(tmp_path_factory, commands):  # the server imports while the shards are written
    """A folder with `latents/` and `codec/`; tests run commands in it, each with a run folder of its own."""
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    return folder


@pytest.fixture(scope="session")
def online_clips(tmp_path_factory):
    """A folder with `clips/` and `codec/` for runs on clips; tests read them and write beside them."""
    return online_case.write_inputs(tmp_path_factory.mktemp("online"))
