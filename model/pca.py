"""Principal components of a stream of vectors, in float64.

Shapes: N vectors, P values of a vector, K components kept.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class PrincipalComponents:
    """The K directions of largest variance, largest first."""

    mean_P: Tensor
    direction_KP: Tensor
    """Orthonormal rows; the entry of largest magnitude is positive, so that the sign is decided."""
    variance_K: Tensor
    explained: float
    """Fraction of the variance that lies along the K directions."""


class StreamingCovariance:
    """Mean and covariance of vectors that arrive in batches (Chan, Golub and LeVeque 1979: pairwise update)."""

    def __init__(self, values: int) -> None:
        self.count = 0
        self.mean_P = torch.zeros(values, dtype=torch.float64)
        self.scatter_PP = torch.zeros(values, values, dtype=torch.float64)

    def add(self, vector_NP: Tensor) -> None:
        """Take in a batch; it is read as float64."""
        if not vector_NP.shape[0]:
            return
        x_NP = vector_NP.detach().double()
        count, total = x_NP.shape[0], self.count + x_NP.shape[0]
        mean_P = x_NP.mean(0)
        centred_NP = x_NP - mean_P
        shift_P = mean_P - self.mean_P
        self.scatter_PP += centred_NP.T @ centred_NP + torch.outer(shift_P, shift_P) * (self.count * count / total)
        self.mean_P += shift_P * (count / total)
        self.count = total

    def components(self, number: int) -> PrincipalComponents:
        """The `number` leading components; ValueError where there are too few vectors for them."""
        if self.count <= number:
            raise ValueError(f"{number} principal components need more than {self.count} vectors: give more clips")
        variance_P, direction_PP = torch.linalg.eigh(self.scatter_PP / self.count)
        variance_K, direction_KP = variance_P.flip(0)[:number], direction_PP.flip(1)[:, :number].T
        largest_K1 = direction_KP.abs().argmax(1, keepdim=True)
        direction_KP = direction_KP * direction_KP.gather(1, largest_K1).sign()
        explained = float(variance_K.sum() / variance_P.sum().clamp_min(torch.finfo(torch.float64).tiny))
        return PrincipalComponents(
            mean_P=self.mean_P.clone(), direction_KP=direction_KP, variance_K=variance_K, explained=explained
        )
