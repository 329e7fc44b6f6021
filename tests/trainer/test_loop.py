"""The loop stopped anywhere and started again is the loop that never stopped, bit by bit or in another layout."""

import json
import shutil
import signal
from itertools import pairwise
from statistics import mean

import pytest
import torch

from tests.trainer.run_case import STEPS, overrides, write_inputs
from trainer.checkpoint import CheckpointReader, committed_steps
from trainer.loop import ema_decay
from trainer.metrics import read_metrics

HALF = STEPS // 2
PARITY = 2e-5
KINDS = ("master", "exp_avg", "exp_avg_sq", "ema")
RANKS = {"single": 1, "tp2": 2, "pp2": 2, "dp2": 2, "tp2_pp2": 4}
THREE_BLOCKS = {"model__num_blocks": 3, "run__steps": 8, "run__evaluate_every": 4, "run__checkpoint_every": 0}
THREE_STAGES = {**THREE_BLOCKS, "parallel__pipeline": 3}


def words(name, layout, **changes):
    return [*overrides(folder=name, **changes), f"parallel={layout}"]


@pytest.fixture(scope="module")
def train(commands, inputs):
    """Run the command of a layout; `event` happens to one rank, as in `run_case.arm`."""

    def start(name, layout, *, event=None, **changes):
        settings = {"run__evaluate_every": HALF, "run__checkpoint_every": HALF} | changes
        return commands.run(words(name, layout, **settings), cwd=inputs, ranks=RANKS[layout], event=event)

    return start


@pytest.fixture(scope="module")
def straight(train, inputs):
    """Run folders of 20 steps without a stop, by layout."""
    for layout in ("single", "dp2", "tp2_pp2"):
        train(f"straight_{layout}", layout).ok()
    return {layout: inputs / f"straight_{layout}" for layout in ("single", "dp2", "tp2_pp2")}


def last(folder):
    reader = CheckpointReader(folder / f"checkpoints/step_{STEPS:08d}")
    reader.verify()
    return reader


def column(folder, name):
    return [(row["step"], row[name]) for row in read_metrics(folder) if name in row]


def assert_same_bits(folder, reference):
    ours, theirs = last(folder), last(reference)
    assert ours.state == theirs.state
    for kind in KINDS:
        assert ours.names(kind) == theirs.names(kind) != []
        different = [n for n in ours.names(kind) if not torch.equal(ours.tensor(kind, n), theirs.tensor(kind, n))]
        assert not different, kind
    for name in ("loss", "grad_norm", "lr", "tokens", "flops", "epoch", "heldout/loss"):
        assert column(folder, name) == column(reference, name), name


def assert_near(folder, reference):
    ours, theirs = last(folder), last(reference)
    moved = 0.0
    for kind in ("master", "ema"):
        for name in theirs.names(kind):
            one, other = ours.tensor(kind, name).double(), theirs.tensor(kind, name).double()
            assert (one - other).norm() <= PARITY * other.norm(), f"{kind} {name}"
            moved += float(other.norm())
    assert moved > 0
    for name in ("loss", "heldout/loss"):
        pairs = zip(column(folder, name), column(reference, name), strict=True)
        assert all(a[0] == b[0] and a[1] == pytest.approx(b[1], rel=PARITY) for a, b in pairs)


@pytest.mark.parametrize(("layout", "rank"), [("tp2_pp2", 3), ("single", 0)])
def test_ten_steps_and_ten_more_are_the_bits_of_twenty(train, straight, inputs, layout, rank):
    name = f"halves_{layout}"
    stopped = train(name, layout, event={"step": HALF, "rank": rank, "signal": "SIGUSR1"})
    assert stopped.code == 75, stopped.err
    assert f"after step {HALF} of {STEPS}; everything is saved, and the same command goes on" in stopped.err
    assert [row["step"] for row in read_metrics(inputs / name) if "loss" in row] == list(range(1, HALF + 1))
    assert committed_steps(inputs / name / "checkpoints") == [HALF]
    again = train(name, layout).ok()
    assert f"resumed from {name}/checkpoints/step_{HALF:08d}" in again.err
    assert_same_bits(inputs / name, straight[layout])


def test_ten_steps_by_tp2_and_ten_by_pp2_are_the_run_within_parity(train, straight, inputs):
    assert train("across", "tp2", event={"step": HALF, "rank": 0, "signal": "SIGTERM"}).code == 75
    train("across", "pp2").ok()
    assert_near(inputs / "across", straight["single"])


@pytest.mark.parametrize("layout", ["tp2_pp2", "dp2"])
def test_every_layout_trains_the_same_run(straight, layout):
    assert_near(straight[layout], straight["single"])
    for name in ("tokens", "flops", "epoch", "lr", "fill"):
        assert column(straight[layout], name) == column(straight["single"], name), name


def test_a_middle_stage_without_latents_trains_the_same_run(commands, inputs):
    commands.run(words("whole", "single", **THREE_BLOCKS), cwd=inputs).ok()
    commands.run(words("staged", "pp2", **THREE_STAGES), cwd=inputs, ranks=3).ok()
    for name in ("loss", "grad_norm", "heldout/loss"):
        pairs = list(zip(column(inputs / "staged", name), column(inputs / "whole", name), strict=True))
        assert all(a[0] == b[0] and a[1] == pytest.approx(b[1], rel=PARITY) for a, b in pairs), name
        assert len(pairs) >= 3
    for name in ("tokens", "flops", "fill"):
        assert column(inputs / "staged", name) == column(inputs / "whole", name), name


def test_a_killed_run_goes_on_from_its_last_checkpoint_and_rewrites_what_came_after(train, straight, inputs):
    assert train("killed", "single", event={"step": 13, "signal": "SIGKILL"}).code == -9
    assert [step for step, _ in column(inputs / "killed", "loss")][-1] == 12
    assert "step_00000010" in train("killed", "single").ok().err
    assert_same_bits(inputs / "killed", straight["single"])
    assert read_metrics(inputs / "killed")[-1]["goodput/lost_s"] > 0, "steps 11 and 12 were done twice"


@pytest.mark.parametrize(
    ("layout", "name", "copies"),
    [("tp2", "conditioning.time_in.bias", "tensor ranks"), ("dp2", "blocks.1.mlp_in.weight", "replicas")],
)
def test_a_bit_that_flips_on_one_rank_ends_the_run_before_it_is_saved(train, inputs, layout, name, copies):
    changes = {"run__check_replicas_every": 4, "run__checkpoint_every": 3}
    event = {"step": 12, "rank": 1, "flip": name}
    sentence = train(f"flipped_{layout}", layout, event=event, **changes).refused()
    assert f"weights that have to be equal on the {copies} [0, 1] are not: {name}; " in sentence
    assert [step for step, _ in column(inputs / f"flipped_{layout}", "loss")][-1] == 12
    assert committed_steps(inputs / f"flipped_{layout}/checkpoints") == [6, 9], "12 was due"


def test_copies_are_compared_between_checkpoints_too(train, inputs):
    event = {"step": 8, "rank": 1, "flip": "blocks.1.mlp_in.weight"}
    changes = {"run__check_replicas_every": 4, "run__checkpoint_every": 0}
    assert "blocks.1.mlp_in.weight" in train("compared", "dp2", event=event, **changes).refused()
    assert [step for step, _ in column(inputs / "compared", "loss")][-1] == 8
    unchecked = train("unchecked", "dp2", event=event | {"step": STEPS}, **changes | {"run__check_replicas_every": 0})
    assert unchecked.ok()


def test_the_deterministic_mode_trains_and_evaluates_the_same_run(train, straight, inputs):
    ended = train("deterministic", "single", parallel__deterministic="true").ok()
    assert "ZeRO-1, fp32, deterministic, 1 in all" in ended.err
    assert_same_bits(inputs / "deterministic", straight["single"])


def test_a_text_that_is_not_finite_ends_the_run_and_names_its_samples(commands, inputs, tmp_path):
    write_inputs(tmp_path, bad_text="clip number 6")
    changes = {"flow__caption_dropout": 0.0, "data__packs_per_step": 1, "run__checkpoint_every": 1}
    sentence = commands.run(words("run", "pp2", **changes), cwd=tmp_path, ranks=2).refused()
    steps = [step for step, _ in column(tmp_path / "run", "loss")]
    assert steps == list(range(1, len(steps) + 1))
    assert 1 <= len(steps) < STEPS
    assert sentence.startswith(f"step {len(steps) + 1}: loss or gradient is not finite")
    assert "NaN or Inf is stored in sample clip6: encode the clips again" in sentence
    assert committed_steps(tmp_path / "run/checkpoints")[-1] == len(steps)


def test_a_latent_that_is_not_finite_is_never_trained_on(commands, inputs, tmp_path):
    write_inputs(tmp_path, bad_latent="clip number 6")
    sentence = commands.run(words("run", "single"), cwd=tmp_path).refused()
    assert "nothing was updated" in sentence
    assert "NaN or Inf is stored in sample clip6: encode the clips again" in sentence


@pytest.mark.parametrize(("layout", "ranks", "own"), [("dp2", 2, {}), ("pp2", 3, THREE_STAGES)])
def test_a_shard_that_not_every_rank_reads_ends_all_of_them(commands, inputs, tmp_path, layout, ranks, own):
    """The other replica reads other samples, and the middle one of three stages reads no latents."""
    shutil.copytree(inputs / "latents", tmp_path / "latents")
    changes = {"data__folder": tmp_path / "latents", "data__packs_per_step": 2, "data__prefetch_steps": 1} | own
    for shard in (tmp_path / "latents").rglob("*.tar"):  # one byte of every latent of a shard
        damaged = bytearray(shard.read_bytes())
        if b"clip3.latent" in damaged:
            damaged[damaged.index(b"clip3.latent") + 512 + 100] ^= 1
            shard.write_bytes(damaged)
    starts = [commands.run(words(tmp_path / "run", layout, **changes), cwd=inputs, ranks=ranks) for _ in range(2)]
    sentence, again = (ended.refused() for ended in starts)
    assert "sample clip3: its latent is damaged (wrong checksum)" in sentence
    assert again == sentence


def test_every_row_of_the_record_is_whole(straight):
    rows = [json.loads(line) for line in (straight["single"] / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "heldout/loss" in row] == [0, HALF, STEPS]
    assert rows[0]["heldout/ratio_to_zero"] == pytest.approx(1.0), "an untrained model predicts zero"
    levels = [value for name, value in rows[0].items() if name.startswith("heldout/loss_t")]
    assert len(levels) == 2
    assert sum(levels) / 2 == pytest.approx(rows[0]["heldout/loss"])
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, STEPS + 1))
    tokens = [row["tokens"] for row in rows if "tokens" in row]
    assert tokens[-1] > tokens[0] == 0
    assert all(0 <= row["data_wait"] <= row["data_wait_max"] for row in rows if "loss" in row)
    assert all(row["data_wait_rank"] == 0 for row in rows if "loss" in row)
    assert [row["checkpoint"]["path"] for row in rows if "checkpoint" in row] == [
        f"checkpoints/step_{step:08d}" for step in (HALF, STEPS)
    ]


@pytest.mark.parametrize("layout", ["single", "dp2", "tp2_pp2"])
def test_losses_by_level_and_by_bucket_are_those_of_the_whole_step_in_every_layout(straight, layout):
    rows = [row for row in read_metrics(straight[layout]) if "loss" in row]
    reference = [row for row in read_metrics(straight["single"]) if "loss" in row]
    for row, other in zip(rows, reference, strict=True):
        for begins in ("loss_t", "loss_bucket/"):
            parts = {name: value for name, value in row.items() if name.startswith(begins)}
            assert len(parts) >= 1 and min(parts.values()) * 0.9999 <= row["loss"] <= max(parts.values()) * 1.0001
            assert parts == pytest.approx({name: other[name] for name in parts}, rel=PARITY)


def test_a_row_tells_how_full_and_even_all_steps_since_the_last_one_were(train, inputs, straight):
    train("seldom", "dp2", run__log_every=5, run__steps=10).ok()
    each = [row for row in read_metrics(straight["dp2"]) if "fill" in row]
    rows = [row for row in read_metrics(inputs / "seldom") if "fill" in row]
    assert [row["step"] for row in rows] == [5, 10]
    for row in rows:
        steps = each[row["step"] - 5 : row["step"]]
        for name in ("fill", "imbalance"):
            assert row[name] == pytest.approx(mean(one[name] for one in steps), abs=2e-4)
        assert row["imbalance_max"] == max(one["imbalance"] for one in steps)


def test_where_time_went_adds_up(straight):
    rows = [row for row in read_metrics(straight["single"]) if "goodput/step_s" in row]
    assert rows[-1]["goodput/checkpoints_s"] > 0 < rows[-1]["goodput/evaluation_s"]
    for one, other in pairwise(rows):
        assert all(other[name] >= one[name] for name in one if name.startswith("goodput/") and name.endswith("_s"))
    whole = sum(value for name, value in rows[-1].items() if name.startswith("goodput/") and name.endswith("_s"))
    assert rows[-1]["goodput/share"] == pytest.approx(rows[-1]["goodput/step_s"] / whole, abs=1e-3)
    assert rows[-1]["goodput/lost_s"] == 0


def test_half_of_the_average_is_younger_than_its_half_life():
    """Weights jump from 0 to 1; where half-lives are a tenth of the steps so far, 1000 of 10000 are almost one."""
    average = 0.0
    for step in range(10_000, 11_000):
        average = 1 - (1 - average) * ema_decay(0.1, step)
    assert average == pytest.approx(1 - 0.5 ** (10 * torch.log(torch.tensor(1.1)).item()), abs=1e-3)


def test_time_that_is_up_ends_a_run_after_a_step_and_the_next_start_goes_on_bit_by_bit(train, inputs, straight):
    note = inputs / "7.stopped"
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_END_TIME": "1", "TESSERA_STOP_NOTE": str(note)}
    ended = train("out_of_time", "dp2", event={"environ": job})
    assert ended.code == 0, "the script was told, and torchrun need not report a failure"
    assert "stopped by the job's time limit (-" in ended.err and "after step 1 of 20; everything is saved" in ended.err
    assert note.read_text().startswith("the job's time limit (-")
    later = {"SLURM_JOB_ID": "7", "SLURM_JOB_END_TIME": "9999999999"}
    train("out_of_time", "dp2", event={"environ": later}).ok()
    assert_same_bits(inputs / "out_of_time", straight["dp2"])


def test_a_run_that_was_started_once_more_saves_nothing_in_its_old_process(commands, train, inputs, straight):
    """As on a node that SLURM has lost, where the ranks of a job go on while it runs again elsewhere."""
    folder = inputs / "twice"
    settings = words("twice", "single", run__evaluate_every=HALF, run__checkpoint_every=HALF)
    old = commands.start(settings, cwd=inputs, event={"step": 5, "signal": "SIGSTOP"})
    old.until(lambda: [step for step, _ in column(folder, "loss")] == [1, 2, 3, 4])
    train("twice", "single").ok()
    old.signal(signal.SIGCONT)
    assert "was started once more, by another process, so this one ends and saves nothing" in old.wait().refused()
    assert_same_bits(folder, straight["single"])


def test_a_job_that_gets_nowhere_is_ended(train, inputs):
    (inputs / "nowhere").mkdir()
    rows = [{"start": f"{number}", "job": "7", "step": 0, "time": 0.0} for number in range(2)]
    (inputs / "nowhere/starts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    event = {"environ": {"SLURM_JOB_ID": "7", "TESSERA_STOP_NOTE": str(inputs / "note")}}
    sentence = train("nowhere", "single", event=event, run__max_restarts=1).refused()
    assert sentence.startswith(
        "job 7 was started 2 times from step 0 and never came to a checkpoint (run.max_restarts=1)"
    )
    assert not list((inputs / "nowhere").glob("checkpoints/*"))
