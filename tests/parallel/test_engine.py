"""Whole steps with DeepSpeed against a plain AdamW loop, in float32 with clipping active."""

import pytest
from layout_reference import STEPS, assemble, read_ranks, reference_training, relative
from run_layouts import BF16, NOT_FINITE, TRAINED

TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def reference():
    return reference_training(STEPS)


@pytest.mark.parametrize("layout", TRAINED)
def test_losses_and_global_norm_equal_plain_adamw(layouts, reference, layout):
    for _, notes in read_ranks(layouts / f"training_{layout}"):
        assert notes["adam_steps"] == STEPS
        for (loss, norm, skipped), loss_0, norm_0 in zip(
            notes["results"], reference["losses"], reference["norms"], strict=True
        ):
            assert not skipped
            assert abs(loss - loss_0) <= TOLERANCE * loss_0
            assert abs(norm - norm_0) <= TOLERANCE * norm_0


@pytest.mark.parametrize("layout", TRAINED)
@pytest.mark.parametrize("kind", ["master", "ema"])
def test_weights_and_their_average_equal_plain_adamw(layouts, reference, layout, kind):
    whole = assemble(layouts / f"training_{layout}")[kind]
    assert set(whole) == set(reference[kind])
    for name, tensor in whole.items():
        assert relative(tensor, reference[kind][name]) <= TOLERANCE, name


@pytest.mark.parametrize("layout", TRAINED)
def test_all_ranks_report_the_same(layouts, layout):
    rows = [notes["results"] for _, notes in read_ranks(layouts / f"training_{layout}")]
    assert all(row == rows[0] for row in rows)


@pytest.mark.parametrize("layout", NOT_FINITE)
def test_a_step_that_is_not_finite_changes_nothing_anywhere(layouts, layout):
    for _, notes in read_ranks(layouts / f"not_finite_{layout}"):
        assert notes["skipped"] == [True, True, True]
        assert notes["finite"] == [False, False]
        assert notes["unchanged"]
        assert notes["adam_steps"] == 2
        assert not any(skipped for _, _, skipped in notes["results"])


@pytest.mark.parametrize("layout", NOT_FINITE)
def test_training_goes_on_after_skipped_steps_as_if_nothing_had_been(layouts, reference, layout):
    for _, notes in read_ranks(layouts / f"not_finite_{layout}"):
        losses = [loss for loss, _, _ in notes["results"]]
        assert losses == pytest.approx(reference["losses"][2:4], rel=TOLERANCE)


@pytest.mark.parametrize("layout", BF16)
def test_bf16_starts_from_float32_masters_and_stays_near(layouts, reference, layout):
    for _, notes in read_ranks(layouts / f"bf16_{layout}"):
        for (loss, norm, _), loss_0, norm_0 in zip(notes["results"], reference["losses"], reference["norms"]):
            assert loss == pytest.approx(loss_0, rel=0.02)
            assert norm == pytest.approx(norm_0, rel=0.05)


def test_bf16_masters_are_not_rounded(layouts):
    master = assemble(layouts / "bf16_single")["master"]["blocks.0.mlp_in.weight"]
    assert relative(master.bfloat16().float(), master) > 1e-4


@pytest.mark.parametrize("layout", ["tp2_pp2_dp2", "tp2_cp2"])
def test_copies_are_bit_equal_after_fifty_steps(layouts, layout):
    """The case itself asks the engine, which refuses copies that are not."""
    assert [notes["adam_steps"] for _, notes in read_ranks(layouts / f"many_steps_{layout}")]
    for _, notes in read_ranks(layouts / f"many_steps_{layout}"):
        assert notes["adam_steps"] == 50
