"""metrics.jsonl is durable and is written again only past the checkpoint a run resumes from."""

from pathlib import Path

from trainer.metrics import Metrics, Throughput, WandbConfig, read_metrics


def test_rows_past_the_resume_step_are_dropped_and_torn_lines_survived(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, speaks=True, resume_step=0)
    for step in (1, 2, 3):
        metrics.write(step, {"loss": 1.0 / step, "gone": float("nan")})
    metrics.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3]
    assert "gone" not in read_metrics(tmp_path)[0]

    resumed = Metrics(tmp_path, speaks=True, resume_step=2)
    resumed.write(3, {"loss": 9.0})
    resumed.close()
    assert [(row["step"], row["loss"]) for row in read_metrics(tmp_path)] == [(1, 1.0), (2, 0.5), (3, 9.0)]


def test_a_silent_rank_writes_nothing(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "run", speaks=False, resume_step=0)
    metrics.start_wandb(WandbConfig(), name="x", settings={})
    metrics.write(1, {"loss": 1.0})
    metrics.close()
    assert not (tmp_path / "run").exists()


def test_wandb_offline_run_keeps_its_id(tmp_path: Path) -> None:
    ids = []
    for _ in range(2):
        metrics = Metrics(tmp_path, speaks=True, resume_step=0)
        metrics.start_wandb(WandbConfig(mode="offline"), name="x", settings={"seed": 1})
        metrics.write(1, {"loss": 1.0})
        metrics.close()
        ids.append((tmp_path / "wandb_id").read_text())
    assert ids[0] == ids[1]
    folders = list((tmp_path / "wandb").glob("offline-run-*"))
    assert folders and all(folder.name.endswith(ids[0]) for folder in folders)


def test_throughput_counts_since_the_last_take() -> None:
    throughput = Throughput()
    throughput.tokens += 100
    assert throughput.take() > 0
    assert throughput.tokens == 0
