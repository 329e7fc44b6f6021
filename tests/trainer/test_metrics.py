"""metrics.jsonl is durable and is written again only past the checkpoint a run resumes from."""

import logging
from pathlib import Path

import pytest

from trainer.metrics import Metrics, NotFinite, read_metrics
from trainer.mirror import WandbConfig


def test_rows_past_the_resume_step_are_dropped_and_torn_lines_survived(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, speaks=True, resume_step=0, config_yaml="name: x\n")
    for step in (1, 2, 3):
        metrics.write(step, {"loss": 1.0 / step, "gone": float("nan")})
    metrics.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3]
    assert "gone" not in read_metrics(tmp_path)[0]

    resumed = Metrics(tmp_path, speaks=True, resume_step=2, config_yaml="name: x\n")
    resumed.write(3, {"loss": 9.0})
    resumed.close()
    assert [(row["step"], row["loss"]) for row in read_metrics(tmp_path)] == [(1, 1.0), (2, 0.5), (3, 9.0)]


@pytest.mark.parametrize("checkpoint", [0, 2])
def test_alerts_outlive_the_steps_they_came_in(tmp_path: Path, checkpoint: int) -> None:
    with Metrics(tmp_path, speaks=True, resume_step=0, config_yaml="name: x\n") as metrics:
        for step in (1, 2, 3):
            metrics.write(step, {"loss": 1.0 / step})
            metrics.alert(step, "spike", f"step {step}: far above")
    before = [row for row in read_metrics(tmp_path) if "alert" in row]
    for _ in range(2):  # once more does not change it
        Metrics(tmp_path, speaks=True, resume_step=checkpoint, config_yaml="name: x\n").close()
        rows = read_metrics(tmp_path)
        assert [row["step"] for row in rows if "loss" in row] == list(range(1, checkpoint + 1))
        alerts = [row for row in rows if "alert" in row]
        assert [row["step"] for row in alerts] == [min(row["step"], checkpoint) for row in before]
        assert [{**row, "step": 0} for row in alerts] == [{**row, "step": 0} for row in before]
        assert [row["step"] for row in rows] == sorted(row["step"] for row in rows)


def test_a_silent_rank_writes_nothing(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "run", speaks=False, resume_step=0, config_yaml="name: x\n")
    metrics.start_wandb(WandbConfig(), name="x", settings={})
    metrics.write(1, {"loss": 1.0})
    metrics.close()
    assert not (tmp_path / "run").exists()


def test_the_folder_keeps_settings_and_everything_that_was_said(tmp_path: Path) -> None:
    logging.getLogger().setLevel(logging.INFO)

    def fail() -> None:
        with Metrics(tmp_path, speaks=True, resume_step=0, config_yaml="name: x\n") as metrics:
            metrics.say("step 1")
            raise ValueError("too hot")

    with pytest.raises(ValueError, match="too hot"):
        fail()
    logging.getLogger(__name__).info("not of this run")
    assert (tmp_path / "config.yaml").read_text() == "name: x\n"
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == ["step 1", "error: too hot"]


def test_the_log_keeps_where_it_went_wrong_unless_it_is_the_users_mistake(tmp_path: Path) -> None:
    for error in (TimeoutError("rank 0 waited"), ValueError("too hot")):
        with (
            pytest.raises(type(error)),
            Metrics(tmp_path, speaks=True, resume_step=0, config_yaml="name: x\n"),
        ):
            raise error
    log = (tmp_path / "log.txt").read_text()
    assert "error: rank 0 waited\nTraceback" in log
    assert log.splitlines()[-1].endswith("error: too hot")


def test_a_folder_that_cannot_be_written_is_named_and_nobody_is_left_waiting(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    metrics = Metrics(tmp_path / "run", speaks=True, resume_step=0, config_yaml="name: x\n")
    metrics.start_wandb(WandbConfig(), name="x", settings={})
    metrics.write(1, {"loss": 1.0})
    metrics.close()
    assert metrics.failure is not None and metrics.failure.startswith(f"{tmp_path / 'run'} could not be written (File")


def test_a_full_disk_while_writing_a_row_is_named(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, speaks=True, resume_step=0, config_yaml="name: x\n")
    with metrics.guarded(tmp_path / "metrics.jsonl"), open("/dev/full", "w") as full:
        full.write("row")
    metrics.close()
    assert metrics.failure == (
        f"{tmp_path}/metrics.jsonl could not be written (the disk is full); the last checkpoint stands, so free space "
        "or repair the disk and start the same command again"
    )


def test_a_run_from_the_start_starts_its_record_again(tmp_path: Path) -> None:
    for _ in range(2):
        metrics = Metrics(tmp_path, speaks=True, resume_step=0, config_yaml="name: x\n")
        metrics.write(0, {"heldout/loss": 1.0})
        metrics.close()
    assert [row["step"] for row in read_metrics(tmp_path)] == [0]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (NotFinite("step 3: loss is not finite"), "not finite"),
        (TimeoutError("rank 0 waited"), "hang"),
        (ConnectionError("rank 0 lost another"), "hang"),
        (ValueError("no shard"), "error"),
    ],
)
def test_an_error_that_ends_a_run_is_an_alert_in_its_record(tmp_path: Path, error: Exception, kind: str) -> None:
    metrics = Metrics(tmp_path, speaks=True, resume_step=0, config_yaml="name: x\n")
    metrics.write(2, {"loss": 1.0})
    with pytest.raises(type(error)), metrics:
        raise error
    last = read_metrics(tmp_path)[-1]
    assert (last["step"], last["alert"]) == (2, {"kind": kind, "text": str(error)})


def test_ctrl_c_is_no_alert(tmp_path: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        Metrics(tmp_path, speaks=True, resume_step=0, config_yaml="name: x\n"),
    ):
        raise KeyboardInterrupt
    assert read_metrics(tmp_path) == []
