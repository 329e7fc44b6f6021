"""A trained model out of a run folder, on one device and without any engine."""

from pathlib import Path

import torch
import yaml

from model.dit import VideoDiT
from model.packed import PackedInputs
from trainer.checkpoint import CheckpointReader, committed_steps, newest_checkpoint, step_folder
from trainer.compose import to_dataclass
from trainer.config import TrainConfig


def load_for_inference(
    run_folder: Path, *, step: int | None = None, use_ema: bool = True
) -> tuple[VideoDiT, TrainConfig, int]:
    """The DiT of a run (averaged weights unless `use_ema` is off), its config and its step.

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
    return dit.eval().requires_grad_(False), config, int(reader.state["step"])


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
