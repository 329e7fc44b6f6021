import numpy as np
import pytest
from scipy.optimize import approx_fprime, minimize

from scaling.coverage import PUBLISHED, published_cells
from scaling.isoflop import grid_of
from scaling.powers import Problem, log_loss, minimise, standard_starts


@pytest.fixture(scope="module")
def grid():
    return grid_of(published_cells(np.geomspace(6e18, 3e21, 6), 8))


def noisy(grid, seed=0):
    return grid.log_loss + 0.005 * np.random.default_rng(seed).standard_normal(len(grid.log_c))


def test_there_are_the_4500_starts_of_the_paper():
    starts = standard_starts(2)
    assert starts.shape == (4500, 5)
    assert len(np.unique(starts, axis=0)) == 4500
    assert set(starts[:, 2]) == {-1, -0.5, 0, 0.5, 1}
    assert starts[:, 3:].max() == 2


def test_predicted_loss_is_the_sum_of_its_terms(grid):
    a, b, e, alpha, beta = PUBLISHED[0]
    n, d = np.exp(grid.x_TM)
    plain = np.exp(e) + np.exp(a) / n**alpha + np.exp(b) / d**beta
    assert np.allclose(np.exp(log_loss(PUBLISHED, grid.x_TM)[0]), plain, rtol=1e-12)


@pytest.mark.parametrize("terms", [1, 2])
def test_gradient_is_that_of_finite_differences(grid, terms):
    rng = np.random.default_rng(1)
    weights = rng.integers(0, 3, (1, len(grid.log_c))).astype(float)
    problem = Problem(x_TM=grid.x_TM[:terms] / 10, y_SM=noisy(grid)[None], weights_SM=weights, delta=0.3)
    params = rng.normal(0.5, 0.3, (1, 2 * terms + 1))
    _, gradient = problem.value_and_gradient(params)
    numeric = approx_fprime(params[0], lambda p: problem.value_and_gradient(p[None])[0][0], 1e-7)
    assert np.allclose(gradient[0], numeric, rtol=1e-4, atol=1e-5)


def test_it_reaches_what_scipy_reaches_from_the_same_starts(grid):
    problem = Problem(x_TM=grid.x_TM, y_SM=noisy(grid)[None])
    starts = standard_starts(2)[::225]
    ours = minimise(starts, problem)[1].min()
    theirs = min(
        minimize(
            lambda p: tuple(part[0] for part in problem.value_and_gradient(p[None])),
            start,
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 1000, "ftol": 1e-14, "gtol": 1e-10},
        ).fun
        for start in starts
    )
    assert ours <= theirs * (1 + 1e-6)


def test_a_law_without_noise_is_found_exactly(grid):
    problem = Problem(x_TM=grid.x_TM, y_SM=grid.log_loss[None])
    params, value = minimise(standard_starts(2)[::20], problem, steps=500)
    assert value.min() < 1e-13
    assert np.allclose(params[value.argmin()], PUBLISHED[0], rtol=2e-3)


def test_fits_side_by_side_are_fits_one_by_one(grid):
    y_SM = np.stack([noisy(grid, seed) for seed in range(3)])
    weights = np.random.default_rng(0).multinomial(48, np.full(48, 1 / 48), 3).astype(float)
    start = PUBLISHED.repeat(3, 0)
    together = minimise(start, Problem(x_TM=grid.x_TM, y_SM=y_SM, weights_SM=weights))[1]
    for i in range(3):
        rows = np.repeat(np.arange(48), weights[i].astype(int))
        repeated = Problem(x_TM=grid.x_TM[:, rows], y_SM=y_SM[i : i + 1, rows])
        assert minimise(start[:1], repeated)[1][0] == pytest.approx(together[i], rel=1e-4)
