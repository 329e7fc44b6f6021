from dataclasses import replace

import pytest
import torch

from tests.trainer.codec_case import make_config, write_clips
from trainer.checkpoint import newest_checkpoint
from trainer.codec_quality import measure, reconstruct_with
from trainer.codec_run import CodecRun, build_optimizers, checkpoint_root, load_checkpoint, save_checkpoint, train
from trainer.metrics import read_metrics
from trainer.schedule import ScheduleConfig
from trainer.signals import StopRequest
from trainer.train_vae import prepare


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("codec_run") / "clips")


def weights(job: CodecRun) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in job.codec.state_dict().items()}


class StopAfterStep(StopRequest):
    """A stop as if a signal came in step `step`; no signal is sent, so none can reach pytest."""

    def __init__(self, job: CodecRun, step: int) -> None:
        self._job, self._step = job, step

    @property
    def signal_name(self) -> str | None:
        return "SIGTERM" if self._job.step >= self._step else None


def test_a_resumed_run_is_bit_equal_to_an_uninterrupted_one(clips, tmp_path):
    whole = prepare(make_config(clips, tmp_path / "whole", steps=6), "clips")
    assert train(whole, StopRequest()) is None

    config = make_config(clips, tmp_path / "halves", steps=6)
    first = prepare(config, "clips")
    assert train(first, StopAfterStep(first, 3)) == "SIGTERM"
    assert first.step == 3

    second = prepare(config, "clips")
    assert second.step == 3
    assert second.facts == first.facts
    assert train(second, StopRequest()) is None
    assert all(torch.equal(tensor, weights(whole)[name]) for name, tensor in weights(second).items())
    rows = [[(row["step"], row["loss"]) for row in read_metrics(tmp_path / name)] for name in ("whole", "halves")]
    assert rows[0] == rows[1]


def test_a_time_limit_that_is_near_ends_training_after_a_step_with_all_saved(clips, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_END_TIME", "1")
    job = prepare(make_config(clips, tmp_path / "limited", steps=6), "clips")
    assert train(job, StopRequest()).startswith("the job's time limit (-")
    assert prepare(job.config, "clips").step == job.step == 1
    monkeypatch.setenv("SLURM_JOB_END_TIME", "9999999999")
    assert train(job, StopRequest()) is None


def test_training_helps_and_leaves_parameters_without_a_rate_alone(clips, tmp_path):
    config = make_config(clips, tmp_path / "codec", steps=200, schedule=ScheduleConfig(lr=5e-3, warmup_steps=2))
    job = prepare(replace(config, optim=replace(config.optim, shortcut_lr_ratio=0.0)), "clips")
    before = weights(job)
    quality_before = measure(reconstruct_with(job.codec), job.sets.training, job.device)
    assert train(job, StopRequest()) is None
    quality = measure(reconstruct_with(job.codec), job.sets.training, job.device)
    assert quality.psnr_db > quality_before.psnr_db + 0.5
    moved = {name for name, tensor in weights(job).items() if not torch.equal(tensor, before[name])}
    assert not [name for name in moved if name.startswith("shortcut")]
    assert "head_out.rest.weight" in moved


@pytest.mark.parametrize("muon", [True, False])
def test_optimizers_hold_every_parameter_once(clips, tmp_path, muon):
    job = prepare(make_config(clips, tmp_path / "codec"), "clips")
    optimizers = build_optimizers(job.codec, replace(job.config.optim, muon=muon))
    held = [parameter for optimizer in optimizers for group in optimizer.param_groups for parameter in group["params"]]
    assert len({id(parameter) for parameter in held}) == len(held) == len(list(job.codec.parameters()))
    fitted = optimizers[0].param_groups[1]
    assert (fitted["ratio"], fitted["weight_decay"], len(fitted["params"])) == (0.1, 0.0, 8)
    if muon:
        assert {parameter.dim() > 1 for parameter in optimizers[0].param_groups[0]["params"]} == {False}
        assert {parameter.dim() > 1 for parameter in optimizers[1].param_groups[0]["params"]} == {True}


def test_a_checkpoint_holds_everything_and_replaces_the_earlier_one(clips, tmp_path):
    config = make_config(clips, tmp_path / "codec", steps=2)
    job = prepare(config, "clips")
    train(job, StopRequest())
    job.step = 3
    save_checkpoint(job)
    root = checkpoint_root(config.path)
    assert [path.name for path in root.iterdir()] == ["step_00000003"]
    other = prepare(replace(config, folder=str(tmp_path / "other")), "clips")
    reader = newest_checkpoint(root)
    assert reader is not None
    load_checkpoint(other, reader)
    assert all(torch.equal(tensor, weights(job)[name]) for name, tensor in weights(other).items())
    for mine, theirs in zip(other.optimizers, job.optimizers, strict=True):
        assert mine.state and len(mine.state) == len(theirs.state)
        for a, b in zip(other.codec.parameters(), job.codec.parameters(), strict=True):
            moments = theirs.state[b].keys() - {"step"}
            assert all(torch.equal(mine.state[a][kind], theirs.state[b][kind]) for kind in moments)


def test_a_gradient_that_is_not_finite_stops_the_run(clips, tmp_path):
    job = prepare(make_config(clips, tmp_path / "codec"), "clips")
    with torch.no_grad():
        next(job.codec.parameters()).fill_(float("nan"))
    before = weights(job)
    with pytest.raises(ValueError, match="gradient is not finite"):
        train(job, StopRequest())
    assert all(torch.equal(t, before[name]) for name, t in weights(job).items() if not t.isnan().any())
