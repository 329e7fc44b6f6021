"""A trained model out of a run folder, on one device and without any engine."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from model.dit import VideoDiT
from model.packed import PackedInputs
from trainer.checkpoint import CheckpointReader, committed_steps, newest_checkpoint, step_folder
from trainer.compose import to_dataclass
from trainer.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A DiT, and what its checkpoint says of it."""

    dit: VideoDiT
    config: TrainConfig
    step: int
    state: dict[str, Any]
    """`codec` and `text` name what its latents and captions were made by; checkpoints of old lack them."""

    def require(self, what: Literal["codec", "text"], identity: str, *, given: str) -> None:
        """ValueError where `given`, a codec or a text encoder, is not the one of training."""
        trained_with = self.state.get(what)
        if trained_with is not None and trained_with != identity:
            raise ValueError(
                f"{given} is not the one this model was trained with ({identity[:12]}, not {trained_with[:12]}): "
                "give the one that its clips were encoded with"
            )


def load_for_inference(run_folder: Path, *, step: int | None = None, use_ema: bool = True) -> TrainedModel:
    """The DiT of a run (averaged weights unless `use_ema` is off), its config, its step and its state.

    Raises:
        ValueError: no such run or checkpoint; the message says which there are.
    """
    root = run_folder / "checkpoints"
    reader = _open_checkpoint(root, step)
    config = to_dataclass(TrainConfig, yaml.safe_load(reader.config_yaml))
    with torch.device("meta"):
        dit = VideoDiT(config.model)
    kind = "ema" if use_ema else "master"
    stored = {name: reader.shape(kind, name) for name in reader.names(kind)}
    wanted = {name: tuple(parameter.shape) for name, parameter in dit.named_parameters()}
    if wrong := sorted(dict(wanted.items() ^ stored.items())):
        raise ValueError(
            f"{reader.folder}: {kind}/{wrong[0]} has shape {stored.get(wrong[0])}, but the model of its config.yaml "
            f"has {wanted.get(wrong[0])}: it was saved from another model, so load it with the version that saved it"
        )
    dit.load_state_dict({name: reader.tensor(kind, name) for name in wanted}, assign=True)
    return TrainedModel(
        dit=dit.eval().requires_grad_(False), config=config, step=int(reader.state["step"]), state=reader.state
    )


def _open_checkpoint(root: Path, step: int | None) -> CheckpointReader:
    """The checkpoint of a step, or the newest."""
    if step is not None and step not in (saved := committed_steps(root)):
        there = f"saved are {', '.join(map(str, saved))}" if saved else "none is saved"
        raise ValueError(f"no checkpoint of step {step} in {root}: {there}")
    reader = newest_checkpoint(root) if step is None else CheckpointReader(step_folder(root, step))
    if reader is None:
        raise ValueError(f"no checkpoint in {root}; train first, or give the folder of a run that has saved")
    return reader


class Predictor:
    """`predict` on one device: what `TrainEngine.predict` is under a layout."""

    def __init__(self, dit: VideoDiT) -> None:
        self.dit = dit
        self.parameter = next(dit.parameters())

    @torch.inference_mode()
    def __call__(self, inputs: list[PackedInputs]) -> list[torch.Tensor]:
        place, dtype = self.parameter.device, self.parameter.dtype
        return [self.dit(pack.to(place, dtype)) for pack in inputs]
