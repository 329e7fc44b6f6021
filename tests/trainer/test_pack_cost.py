import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from data.balance import PackCost
from trainer.compose import to_dataclass
from trainer.pack_cost import PackCostConfig, compositions, fit, run

CONF = Path(__file__).parents[2] / "conf"


def config(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return to_dataclass(PackCostConfig, compose("pack_cost", list(overrides)))


def test_coefficients_are_recovered_from_times():
    terms = np.array([one.terms for one in compositions(4096)])
    for truth in ([1e-6, 2e-10, 5e-7], [1e-6, 0.0, 0.0]):
        noise = 1 + 0.01 * np.random.default_rng(0).standard_normal(len(terms))
        found, r2 = fit(terms, terms @ truth * noise)
        np.testing.assert_allclose(terms @ found, terms @ truth, rtol=0.02)
        assert r2 > 0.99 and (found >= 0).all()
        assert all(abs(one / other - 1) < 0.15 for one, other in zip(found, truth, strict=True) if other)


def test_compositions_are_of_the_budget_or_half_of_it():
    found = compositions(1120)
    assert {one.samples * one.video_tokens for one in found} <= set(range(540, 561)) | set(range(1080, 1121))
    assert min(one.video_tokens for one in found) >= 16 and max(one.video_tokens for one in found) == 1120
    model = config("model=nano").model
    for one in found[:4]:
        inputs = one.inputs(model)
        assert inputs.num_tokens == sum(inputs.segment_lengths) == one.terms[0]
        assert sum(n * n for n in inputs.segment_lengths) == one.terms[1]
        assert len(inputs.text_KE) == sum(inputs.text_lengths) == one.terms[2]


def test_a_fit_is_stored_for_a_run(tmp_path):
    torch.set_num_threads(1)
    path = tmp_path / "cost.json"
    run(config("model=nano", "tokens_per_pack=512", "repeats=1", f"file={path}"))
    described, cost = json.loads(path.read_text()), PackCost.read(path)
    assert described["device"] in ("cpu", "cuda") and cost.linear + cost.quadratic > 0
    # Seconds of a pack, to the order of magnitude.
    assert 1e-4 < float(cost.of_samples(np.array([512]), np.array([8]))[0]) < 1


@pytest.mark.parametrize(
    ("override", "message"),
    [("repeats=0", "repeats=0 must be at least 1"), ("file=nowhere/x.json", "file=nowhere/x.json: there is no such")],
)
def test_what_cannot_be_measured_is_refused(override, message):
    with pytest.raises(ValueError, match=message):
        config(override)
