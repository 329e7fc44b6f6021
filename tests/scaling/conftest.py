"""What the tests of sweeps share: one set of shards."""

import pytest

from tests.scaling.sweep_case import write_inputs


@pytest.fixture(scope="session")
def inputs(tmp_path_factory):
    """A folder with `latents/` and `codec/`."""
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    return folder
