"""What a run should give: plain torch in one process, no engine. What every layout is compared with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.dit import DiTConfig, VideoDiT
from parallel.optim import AdamWConfig, parameter_groups
from parallel.synthetic import SyntheticPack, lively_value, synthetic_pack


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The run that layouts are put through."""

    model: DiTConfig
    tokens_per_pack: int
    packs_per_step: int
    steps: int
    optim: AdamWConfig
    lr: float
    seed: int = 0

    def packs(self, step: int, count: int | None = None) -> list[SyntheticPack]:
        """The packs of a step, or the first `count` of all."""
        first, count = step * self.packs_per_step, count or self.packs_per_step
        numbers = range(first, first + count)
        return [synthetic_pack(self.model, self.tokens_per_pack, 10_000 * self.seed + n) for n in numbers]

    def value(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A logical parameter at the start, in float64."""
        return lively_value(name, shape, seed=self.seed)


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Losses and norms of each step, and named tensors after the last (or the gradients of a single one)."""

    losses: list[float]
    norms: list[float]
    tensors: dict[str, Tensor]


def dense_model(trial: Trial, dtype: torch.dtype, device: torch.device) -> VideoDiT:
    """The whole DiT with the trial's weights."""
    model = VideoDiT(trial.model).to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(trial.value(name, tuple(parameter.shape)))
    return model.to(device)


def loss_sum(model: VideoDiT, pack: SyntheticPack) -> Tensor:
    """Sum over tokens of weight times squared error (mean over a patch's values), in so many words."""
    parameter = next(model.parameters())
    prediction_LP = model(pack.inputs.to(parameter.device, parameter.dtype))
    target_LP, weight_L = pack.target_LP.to(prediction_LP), pack.weight_L.to(prediction_LP)
    return (((prediction_LP - target_LP) ** 2).mean(-1) * weight_L).sum()


def weight_of(packs: Sequence[SyntheticPack]) -> float:
    """What the loss is divided by."""
    return float(sum(pack.weight_L.sum() for pack in packs))


def reference_gradients(trial: Trial, counts: Sequence[int], device: torch.device) -> dict[int, Reference]:
    """Loss and every gradient over the first 1, 2, ... packs, in float64; the keys are `counts`."""
    model = dense_model(trial, torch.float64, device)
    packs = trial.packs(0, count=max(counts))
    total, weight, found = 0.0, 0.0, {}
    for number, pack in enumerate(packs, start=1):
        part = loss_sum(model, pack)
        part.backward()
        total, weight = total + part.item(), weight + weight_of([pack])
        if number in counts:
            gradients = {name: _gradient(p) / weight for name, p in model.named_parameters()}
            norm = sum(float(g.square().sum()) for g in gradients.values()) ** 0.5
            found[number] = Reference(losses=[total / weight], norms=[norm], tensors=gradients)
    return found


def reference_training(
    trial: Trial,
    dtype: torch.dtype,
    device: torch.device,
    after_step: Callable[[VideoDiT], None] = lambda model: None,
) -> Reference:
    """A plain AdamW loop with clipping of the global norm; weights after its last step."""
    model, optim = dense_model(trial, dtype, device), trial.optim
    named = dict(model.named_parameters())
    shapes = {name: tuple(p.shape) for name, p in named.items()}
    groups = [
        {
            "params": [named[name] for name in group.names],
            "weight_decay": group.weight_decay,
            "lr": trial.lr * group.rate_factor,
        }
        for group in parameter_groups(optim, shapes, trial.model.width_factor)
    ]
    betas = (optim.beta1, optim.beta2)
    adamw = torch.optim.AdamW(groups, betas=betas, eps=optim.eps, fused=False, foreach=False)
    losses, norms = [], []
    for step in range(trial.steps):
        adamw.zero_grad()
        packs = trial.packs(step)
        loss = sum((loss_sum(model, pack) for pack in packs), torch.zeros((), device=device)) / weight_of(packs)
        loss.backward()
        norm = sum(float(_gradient(p).double().square().sum()) for p in named.values()) ** 0.5
        for p in named.values():
            _gradient(p).mul_(min(1.0, optim.clip_norm / norm))
        adamw.step()
        after_step(model)
        losses.append(loss.item())
        norms.append(norm)
    return Reference(losses=losses, norms=norms, tensors={name: p.detach().clone() for name, p in named.items()})


def _gradient(parameter: torch.nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
