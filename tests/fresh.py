"""Tests that fork want a process without a past: threads and locks of hundreds of other tests would be inherited."""

import os
import subprocess
import sys
from functools import wraps
from pathlib import Path

MARK = "TESSERA_TEST_IS_ALONE"


def in_a_fresh_interpreter(test):
    """Runs a test by a pytest of its own."""

    @wraps(test)
    def alone(*arguments, **fixtures):
        if MARK in os.environ:
            return test(*arguments, **fixtures)
        name = os.environ["PYTEST_CURRENT_TEST"].rsplit(" ", 1)[0]
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", name]
        environment = os.environ | {MARK: "1"}
        root = Path(__file__).parents[1]
        run = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stdout + run.stderr
        return None

    return alone
