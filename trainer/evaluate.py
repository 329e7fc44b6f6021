"""Held-out loss of a finished run, and what its captions are worth.

    python -m trainer.evaluate run=runs/demo/dit

Writes `captions.json` into the run folder: the paired difference in held-out loss when every clip is given the
caption of another source, with its 95 % interval.
"""

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import hydra
import numpy as np
import torch
from omegaconf import DictConfig

from data.manifest import Manifest
from data.mixture import DataSet
from model.codec import codec_identity
from parallel.launch import Launch
from trainer.compose import to_dataclass, user_errors
from trainer.evaluation import (
    MIN_SOURCES,
    EvaluationSet,
    captions_of_others,
    heldout_loss,
    heldout_set,
    paired_interval,
)
from trainer.inference import Predictor, TrainedModel, load_for_inference
from trainer.online import supplied

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Which run to evaluate, on which held-out clips; None means as in training."""

    run: str
    step: int | None = None
    use_ema: bool = True
    shards: str | None = None
    max_samples: int = 1000
    levels: int = 8
    permutations: int = 5
    """Ways of giving every clip another source's caption; their losses are averaged."""
    threads: int | None = None
    """CPU threads; None leaves what OMP_NUM_THREADS says, else one for each core."""

    def __post_init__(self) -> None:
        if self.permutations < 1:
            raise ValueError(f"permutations={self.permutations} must be at least 1")


def run(config: EvaluateConfig) -> None:
    Launch.require_single("trainer.evaluate")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    folder = Path(config.run)
    model = load_for_inference(folder, step=config.step, use_ema=config.use_ema)
    heldout = open_heldout(config, model)
    sources = [sample.source for sample in heldout.samples]
    if len(set(sources)) < MIN_SOURCES:
        raise ValueError(
            f"what captions are worth cannot be told from {len(set(sources))} held-out sources, an interval needs "
            f"{MIN_SOURCES}: encode with a larger heldout_fraction, or raise max_samples={config.max_samples}"
        )
    permutations = captions_of_others(sources, count=config.permutations)
    predict = Predictor(model.dit)
    own = heldout_loss(predict, heldout)
    others = [heldout_loss(predict, heldout, text_of=text_of).loss_SV for text_of in permutations]
    difference_SV = np.mean(others, axis=0) - own.loss_SV
    difference_S = difference_SV.mean(1)
    interval = paired_interval(difference_S, sources)
    report = {
        "step": model.step,
        "samples": len(sources),
        "sources": len(set(sources)),
        "heldout_loss": own.loss,
        "ratio_to_zero": own.ratio_to_zero,
        "by_level": _by_level(heldout, own.loss_SV),
        "permutations": len(permutations),
        "difference_by_level": _by_level(heldout, difference_SV),
        **asdict(interval),
    }
    scratch = folder / "captions.json.tmp"
    scratch.write_text(json.dumps(report, indent=1), encoding="utf-8")
    scratch.replace(folder / "captions.json")
    log.info(
        "step %d: held-out loss %.4f (%.3f of the zero predictor's) on %d clips of %d sources",
        *(model.step, own.loss, own.ratio_to_zero, len(sources), len(set(sources))),
    )
    log.info(
        "another source's caption raises it by %+.4f (95 %% interval %+.4f to %+.4f)",
        *(interval.mean, interval.low, interval.high),
    )


def _by_level(heldout: EvaluationSet, values_SV: np.ndarray) -> dict[str, float]:
    means = np.round(values_SV.mean(0), 5).tolist()
    return dict(zip((f"{level:g}" for level in heldout.levels), means, strict=True))


def open_heldout(config: EvaluateConfig, model: TrainedModel) -> EvaluationSet:
    """The held-out clips; refuses shards that this model cannot read."""
    trained = model.config
    manifest = Manifest.read(config.shards or trained.data.folder or "")
    if config.shards is None:
        manifest = supplied(trained, DataSet.of(manifest)).manifests[0]
    codec = model.state.get("codec") or codec_identity(trained.data.codec)
    manifest.require_identity(codec=codec, text=model.state.get("text"), patch_size=trained.model.patch_size)
    if manifest.identity.text_dim != trained.model.text_dim:
        raise ValueError(
            f"{manifest.folder} holds captions embedded in {manifest.identity.text_dim} values, but the model reads "
            f"{trained.model.text_dim}: encode the clips again with the text encoder of training"
        )
    heldout = heldout_set(trained, manifest, max_samples=config.max_samples, levels=config.levels)
    if heldout is None:
        raise ValueError(
            f"{manifest.folder} holds no held-out samples: encode the clips again with heldout_fraction above 0"
        )
    return heldout


@user_errors
@hydra.main(config_path="../conf", config_name="evaluate", version_base="1.3")
@user_errors
def main(config: DictConfig) -> None:
    run(to_dataclass(EvaluateConfig, config))


if __name__ == "__main__":
    main()
