"""What is shown while runs go on: a line each that fits a terminal; elsewhere a plain line now and then."""

import io
import json
import re
from types import SimpleNamespace

from rich.console import Console

from scaling.live import Running, Screen


def running(folder, name, *, step, steps=200, loss=0.5):
    """A run of which `step` steps are logged, and that began ten seconds ago at none."""
    folder.mkdir(parents=True)
    rows = [{"step": number, "loss": loss} for number in range(1, step + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    planned = SimpleNamespace(name=name, steps=steps)
    return Running(cell=SimpleNamespace(planned=planned, folder=folder, step=0), began=100.0)


def test_a_line_tells_step_loss_and_what_is_left(tmp_path):
    one = running(tmp_path / "a", "a", step=50)
    assert one.columns(110.0) == ("a", "step 50 of 200", "loss 0.5000", "10 s, 30 s left")
    assert running(tmp_path / "b", "b", step=0).columns(101.0) == ("b", "step 0 of 200", "starting", "1 s")


def test_twelve_runs_fit_eighty_columns_and_what_is_said_stays_above_them(tmp_path):
    printed, told = io.StringIO(), []
    console = Console(file=printed, force_terminal=True, width=80, height=24)
    name = "1.6m-c2.5e11-lr0.25-s1-beta2-0.95-and-more-of-it"
    runs = [running(tmp_path / str(number), f"{number}-{name}", step=7) for number in range(12)]
    with Screen(told.append, console) as screen:
        screen.show("3 of 12 cells ended", runs)
        screen.say("130k-c2.5e11: held-out loss 0.4321")
    text = printed.getvalue()
    assert "3 of 12 cells ended" in text and "held-out loss 0.4321" in text and not told
    shown = [line for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).splitlines() if "-1.6m" in line]
    assert {line.split("-")[0] for line in shown} == {str(number) for number in range(12)}
    for line in shown:
        assert len(line) <= 80 and re.search(r"\u2026  step 7 of 200  loss 0.5000  .* left *$", line), line


def test_elsewhere_it_is_a_plain_line_now_and_then(tmp_path):
    told = []
    with Screen(told.append, Console(file=io.StringIO())) as screen:
        for _ in range(3):
            screen.show("0 of 2 cells ended", [running(tmp_path / f"a{len(told)}", "a", step=50)] if not told else [])
        screen.say("b: failed")
    assert len(told) == 2 and told[0].startswith("0 of 2 cells ended; a: step 50 of 200, loss 0.5000, ")
