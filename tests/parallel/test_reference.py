"""The reference itself: additive over packs, alive in every parameter, and plain AdamW."""

import torch

from model.dit import DiTConfig
from parallel.optim import AdamWConfig
from parallel.reference import Trial, dense_model, loss_sum, reference_gradients, reference_training, weight_of

CPU = torch.device("cpu")
CONFIG = DiTConfig(num_blocks=2, num_heads=2, head_dim=6, ffn_dim=8, text_dim=4, in_channels=2, out_channels=2)
TRIAL = Trial(
    model=CONFIG, tokens_per_pack=24, packs_per_step=2, steps=3, optim=AdamWConfig(clip_norm=0.05, eps=1e-6), lr=1e-3
)


def test_gradients_over_several_packs_are_those_of_the_one_sum():
    found = reference_gradients(TRIAL, [1, 3], CPU)
    assert set(found) == {1, 3}
    model, packs = dense_model(TRIAL, torch.float64, CPU), TRIAL.packs(0, count=3)
    loss = sum(loss_sum(model, pack) for pack in packs) / weight_of(packs)
    named = dict(model.named_parameters())
    for name, gradient in zip(named, torch.autograd.grad(loss, list(named.values())), strict=True):
        torch.testing.assert_close(found[3].tensors[name], gradient, rtol=1e-12, atol=1e-15)
    assert abs(found[3].losses[0] - loss.item()) < 1e-12


def test_every_parameter_carries_gradient():
    (reference,) = reference_gradients(TRIAL, [2], CPU).values()
    assert min(float(gradient.norm()) for gradient in reference.tensors.values()) > 1e-6


def test_training_clips_at_every_step_and_moves_every_weight():
    reference = reference_training(TRIAL, torch.float64, CPU)
    assert len(reference.losses) == len(reference.norms) == TRIAL.steps
    assert min(reference.norms) > 1.5 * TRIAL.optim.clip_norm
    for name, weight in reference.tensors.items():
        assert not torch.equal(weight, TRIAL.value(name, tuple(weight.shape))), name


def test_seeds_give_other_packs_and_other_weights():
    other = Trial(**{**vars(TRIAL), "seed": 1})
    assert not torch.equal(TRIAL.packs(0)[0].inputs.patch_LP, other.packs(0)[0].inputs.patch_LP)
    assert reference_gradients(other, [1], CPU)[1].losses != reference_gradients(TRIAL, [1], CPU)[1].losses
