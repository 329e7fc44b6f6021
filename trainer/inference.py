"""A trained model out of a run folder, on one device and without any engine."""

from pathlib import Path

import torch
import yaml

from model.dit import VideoDiT
from model.packed import PackedInputs
from trainer.checkpoint import CheckpointReader, newest_checkpoint, step_folder
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
    reader = newest_checkpoint(root) if step is None else CheckpointReader(step_folder(root, step))
    if reader is None:
        raise ValueError(f"no checkpoint in {root}; train first, or give the folder of a run that has saved")
    reader.verify()
    config = to_dataclass(TrainConfig, yaml.safe_load(reader.config_yaml))
    with torch.device("meta"):
        dit = VideoDiT(config.model)
    kind = "ema" if use_ema else "master"
    weights = {name: reader.tensor(kind, name) for name, _ in dit.named_parameters()}
    dit.load_state_dict(weights, assign=True)
    return dit.eval().requires_grad_(False), config, int(reader.state["step"])


class Predictor:
    """`predict` on one device: what `TrainEngine.predict` is under a layout."""

    def __init__(self, dit: VideoDiT) -> None:
        self.dit = dit
        self.parameter = next(dit.parameters())

    @torch.inference_mode()
    def __call__(self, inputs: list[PackedInputs]) -> list[torch.Tensor]:
        place, dtype = self.parameter.device, self.parameter.dtype
        return [self.dit(pack.to(place, dtype)) for pack in inputs]
