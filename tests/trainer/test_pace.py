"""How fast a run goes, as rows and as one line."""

from types import SimpleNamespace

import pytest
import torch

from trainer.goodput import Goodput
from trainer.pace import Pace, Progress, due, status_line

ROW = {
    "loss": 0.41234,
    "grad_norm": 0.3124,
    "lr": 4e-3,
    "tokens_per_s": 51234.4,
    "s_per_step": 0.2151,
    "data_wait": 0.012,
    "fill": 0.983,
}


def pace_of(*, data_size=1, said=None, alerts=None, **settings):
    """A pace without a run: what it says goes into `said`, what it alarms of into `alerts`."""
    said, alerts = [] if said is None else said, [] if alerts is None else alerts
    run = SimpleNamespace(
        metrics=SimpleNamespace(
            goodput=Goodput(), warn=said.append, alert=lambda step, kind, text: alerts.append((step, kind))
        ),
        grid=SimpleNamespace(data_size=data_size, device=torch.device("cpu"), world_size=4),
        shards=SimpleNamespace(manifests=[]),
        engine=SimpleNamespace(watch=lambda watch: None),
        config=SimpleNamespace(
            run=SimpleNamespace(**{"spike_factor": 3.0, "peak_tflops": None} | settings),
            evaluation=SimpleNamespace(levels=2),
        ),
    )
    return Pace(run, Progress())


def waiting(told, *, data_size):
    """What is written and said where ranks tell `[data rank, seconds waited]` of 10 seconds."""
    said = []
    ranks = [{"data_rank": data_rank, "waited_s": seconds} for data_rank, seconds in told]
    return pace_of(data_size=data_size, said=said)._waits(ranks, 30, 10.0), said


def test_the_rank_that_waits_longest_for_data_is_told():
    even = [[0, 0.3], [0, 0.0], [1, 0.1], [1, 0.2]]  # two stages each
    row, said = waiting(even, data_size=2)
    assert row == {"data_wait": 0.025, "data_wait_max": 0.03, "data_wait_rank": 0}
    assert not said
    row, said = waiting([[0, 0.1], [1, 0.2], [2, 4.0], [3, 0.1]], data_size=4)
    assert row == {"data_wait": 0.11, "data_wait_max": 0.4, "data_wait_rank": 2}
    assert len(said) == 1
    assert said[0].startswith("step 30: rank 2 waited 4.00 s of 10.00 s for its data, ranks usually 0.15 s")
    assert not waiting([[0, 4.0]], data_size=1)[1]
    assert not waiting([[0, 0.0], [1, 0.1], [2, 0.0]], data_size=3)[1], "too little to speak of"


def test_what_is_due_is_due_at_the_end_too_and_never_where_its_period_is_zero():
    assert [step for step in range(11) if due(4, step, last=step == 10)] == [0, 4, 8, 10]
    assert not any(due(0, step, last=step == 10) for step in range(11))


def test_a_spike_is_told_once_until_the_loss_came_down_again():
    said, alerts = [], []
    pace = pace_of(said=said, alerts=alerts)
    losses = [5.0, *[1.0] * 30, 2.9, 3.5, 4.0, 1.0, 9.0]
    for step, loss in enumerate(losses):
        pace._look_for_spike(step, loss)
    assert alerts == [(32, "spike"), (35, "spike")]
    assert said[0] == "step 32: loss 3.5000 is 3.5 times the median of the steps before"
    quiet = []
    pace = pace_of(alerts=quiet, spike_factor=0.0)
    for step, loss in enumerate(losses):
        pace._look_for_spike(step, loss)
    assert not quiet


def test_arithmetic_is_for_each_device_and_has_no_share_where_the_most_is_unknown():
    assert pace_of()._arithmetic(8 * 10**14, 2.0) == {"tflops_per_device": 100.0}
    assert pace_of(peak_tflops=400.0)._arithmetic(8 * 10**14, 2.0) == {"tflops_per_device": 100.0, "mfu": 0.25}


def test_nodes_are_told_of_now_and_then():
    pace = pace_of()
    told = [{"host": "n0", "load": 0.5, "memory_used": 0.25}]
    assert pace._nodes(told) == {"node/n0/load": 0.5, "node/n0/memory_used": 0.25}
    assert pace._nodes(told) == {}


def test_the_line_says_how_it_goes_and_until_when():
    line = status_line(ROW, 40, 10_000, 0.2)
    begins = (
        "step    40/10000  loss 0.4123   51,234 tokens/s  data wait 1%  norm 0.312  0.22 s/step  lr 4.00e-03  fill 0.98"
    )
    assert line.startswith(begins + "  left 33 min, until ")
    gpu = status_line(ROW | {"mfu": 0.412, "memory/device_gb": 61.04, "memory/host_gb": 9.0}, 10_000, 10_000, 0.2)
    assert gpu.endswith(
        "tokens/s  MFU 41.2%  data wait 1%  norm 0.312  0.22 s/step  61.0 GB  lr 4.00e-03  fill 0.98  left 0 s"
    )


@pytest.mark.parametrize(
    ("room", "ends"),
    [(120, "fill 0.98"), (100, "0.22 s/step"), (80, "data wait 1%"), (60, "tokens/s"), (9, "10000/10000")],
)
def test_a_narrow_terminal_keeps_what_matters_most_and_until_when(room, ends):
    line = status_line(ROW, 10_000, 10_000, 0.2).within(room)
    assert line.endswith(f"{ends}  left 0 s")
    assert len(line) <= max(room, 28)
