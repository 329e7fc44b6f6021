"""Muon: momentum whose step is made orthogonal, for the weights of a network's inner layers.

Jordan et al. 2024; steps are scaled as in Liu et al. 2025 (eq. 4), so that learning rates of AdamW carry over. Unlike
torch's, it works in the dtype of the weights (bfloat16 is slow on CPUs) and takes convolution kernels as matrices.
"""

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_RMS_OF_ADAM = 0.2


class Muon(torch.optim.Optimizer):
    """For parameters of two dimensions or more; all but the first count as the matrix's columns."""

    def __init__(self, params: ParamsT, *, lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    step = self._momentum_step(parameter, parameter.grad, group["momentum"]).flatten(1)
                    by_shape[step.shape[0], step.shape[1]].append((parameter, step))
            for (rows, columns), members in by_shape.items():
                scale = _RMS_OF_ADAM * max(rows, columns) ** 0.5
                steps = orthogonalised(torch.stack([step for _, step in members]))
                for (parameter, _), step in zip(members, steps, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(step.view_as(parameter), alpha=-group["lr"] * scale)

    def _momentum_step(self, parameter: nn.Parameter, gradient: Tensor, momentum: float) -> Tensor:
        """Nesterov's: the gradient, drawn towards its running mean."""
        state = self.state[parameter]
        if "exp_avg" not in state:
            state["exp_avg"] = torch.zeros_like(parameter)
        state["exp_avg"].lerp_(gradient, 1 - momentum)
        return gradient.lerp(state["exp_avg"], momentum)


def orthogonalised(matrix_NRC: Tensor) -> Tensor:
    """About U V^T of each matrix U S V^T: singular values end between 0.7 and 1.2 (Newton-Schulz, five iterations)."""
    a, b, c = _NEWTON_SCHULZ
    is_tall = matrix_NRC.shape[1] > matrix_NRC.shape[2]
    x = matrix_NRC.mT if is_tall else matrix_NRC
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if is_tall else x
