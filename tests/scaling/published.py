"""Cells with noise drawn from the published law."""

from dataclasses import replace

import numpy as np

from scaling.coverage import published_cells


def noisy_cells(budgets, sizes, *, noise, width=0.6, seed=0):
    cells = published_cells(np.asarray(budgets), sizes, width=width)
    factors = np.exp(noise * np.random.default_rng(seed).standard_normal(len(cells)))
    return [replace(cell, loss=cell.loss * float(factor)) for cell, factor in zip(cells, factors)]
