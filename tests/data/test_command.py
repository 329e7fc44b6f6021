"""What a command says and returns when it ends early."""

import subprocess
import sys

import pytest

from data.command import command


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ValueError("--workers 0 must be at least 1"), 2, "error: --workers 0 must be at least 1\n"),
        (FileNotFoundError(2, "No such file", "a.tar"), 2, "error: [Errno 2] No such file: 'a.tar'\n"),
        (BrokenPipeError(32, "a worker is gone"), 2, "error: [Errno 32] a worker is gone\n"),
        (KeyboardInterrupt(), 130, "stopped; nothing was written, and the same command starts again\n"),
    ],
)
def test_mistakes_and_ctrl_c_are_one_line(capfd, error, code, said):
    @command()
    def main(arguments=None):
        raise error

    assert main([]) == code
    assert capfd.readouterr().err == said


def test_the_code_of_a_command_is_its_own_and_errors_of_ours_stay_errors():
    assert command()(lambda arguments: 1)([]) == 1
    with pytest.raises(AssertionError):
        command()(lambda arguments: pytest.fail("ours", pytrace=False) if arguments else _ours())([])


def _ours():
    raise AssertionError


def test_a_reader_that_has_seen_enough_is_no_mistake():
    text = (
        "import sys; from data.command import command\n"
        "sys.exit(command()(lambda _: [print('line', number) for number in range(100_000)] and 0)(None))"
    )
    writer = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert writer.stdout.readline() == b"line 0\n"
    writer.stdout.close()
    assert (writer.wait(60), writer.stderr.read()) == (141, b"")
    writer.stderr.close()
