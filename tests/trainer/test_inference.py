"""A model out of a run folder: exactly the saved weights, or one sentence."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data.manifest import Manifest
from data.sample_reader import read_sample
from diffusion.conditions import FrameLevels
from model.packed import PackedInputs
from tests.trainer.evaluation_case import MODEL, RunCase, new_dit, save_run, write_case
from trainer.batch import PackLayout, Segment, pack_segments
from trainer.inference import Predictor, load_for_inference


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> RunCase:
    return write_case(tmp_path_factory.mktemp("case"), heldout=[0, 1])


def fresh(tmp_path: Path) -> RunCase:
    return RunCase(tmp_path)


def test_weights_are_those_that_were_saved(tmp_path: Path) -> None:
    case, averaged, raw = fresh(tmp_path), new_dit(1, scale=0.5), new_dit(2, scale=0.5)
    save_run(case, 40, ema=averaged, master=raw)
    for use_ema, expected in ((True, averaged), (False, raw)):
        model = load_for_inference(case.run, use_ema=use_ema)
        dit = model.dit
        assert (model.config, model.step, dit.training) == (case.config(), 40, False)
        loaded = dict(dit.named_parameters())
        assert loaded.keys() == dict(expected.named_parameters()).keys()
        for name, parameter in expected.named_parameters():
            assert torch.equal(loaded[name], parameter), name
            assert not loaded[name].requires_grad
        assert not any(tensor.is_meta for tensor in dit.state_dict().values())


def test_a_step_can_be_chosen_and_the_newest_is_the_default(tmp_path: Path) -> None:
    case = fresh(tmp_path)
    for step in (10, 20):
        save_run(case, step, ema=new_dit(step))
    assert load_for_inference(case.run).step == 20
    model = load_for_inference(case.run, step=10)
    assert model.step == model.state["step"] == 10
    assert torch.equal(model.dit.patch_embedding.weight, new_dit(10).patch_embedding.weight)
    with pytest.raises(ValueError, match=r"no checkpoint of step 15 in .*/checkpoints: saved are 10, 20$"):
        load_for_inference(case.run, step=15)


def test_another_codec_or_text_encoder_than_in_training_is_refused(tmp_path: Path) -> None:
    case = fresh(tmp_path)
    save_run(case, 1, ema=new_dit(1))
    old = load_for_inference(case.run)
    old.require("codec", "anything", given="codec=x")  # a checkpoint that does not say
    model = replace(old, state={"codec": "c" * 64, "text": "t" * 64})
    model.require("codec", "c" * 64, given="codec=x")
    with pytest.raises(ValueError, match=r"^codec=x is not the one this model was trained with \(ddd.*, not ccc"):
        model.require("codec", "d" * 64, given="codec=x")
    with pytest.raises(ValueError, match="the text encoder is not the one this model was trained with"):
        model.require("text", "u" * 64, given="the text encoder")


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no checkpoint in .*/dit/checkpoints; train first"):
        load_for_inference(tmp_path / "dit")
    with pytest.raises(ValueError, match=r"no checkpoint of step 3 in .*: none is saved"):
        load_for_inference(tmp_path / "dit", step=3)


def test_a_damaged_checkpoint_is_passed_over_but_never_loaded(tmp_path: Path) -> None:
    case = fresh(tmp_path)
    save_run(case, 1, ema=new_dit(1))
    newest = save_run(case, 2, ema=new_dit(2))
    weights = newest / "pieces-00000.safetensors"
    whole = bytearray(weights.read_bytes())
    whole[-3] ^= 1
    weights.write_bytes(whole)
    assert load_for_inference(case.run).step == 1
    with pytest.raises(ValueError, match=r"pieces-00000\.safetensors: sha256 differs"):
        load_for_inference(case.run, step=2)


@pytest.mark.parametrize(
    ("model", "tensor"),
    [
        ({"num_blocks": 2}, r"blocks\.1\.\S+ has shape None, but .* has \("),
        ({"ffn_dim": 24}, r"blocks\.0\.\S+ has shape \(16,?\), but .* has \(24,?\)"),
    ],
)
def test_weights_of_another_model_than_the_config_are_refused(
    tmp_path: Path, model: dict[str, int], tensor: str
) -> None:
    case = fresh(tmp_path)
    save_run(case, 1, ema=new_dit(1), model=MODEL.__class__(**{**vars(MODEL), **model}))
    with pytest.raises(ValueError, match=f"step_00000001: ema/{tensor}"):
        load_for_inference(case.run)


def test_weights_that_the_config_has_no_place_for_are_refused(tmp_path: Path) -> None:
    case, deep = fresh(tmp_path), MODEL.__class__(**{**vars(MODEL), "num_blocks": 2})
    save_run(case, 1, ema=new_dit(1, model=deep))
    with pytest.raises(ValueError, match=r"ema/blocks\.1\.\S+ has shape \(.*\), but .* has None"):
        load_for_inference(case.run)


def packs(case: RunCase) -> list[PackedInputs]:
    manifest = Manifest.read(case.shards)
    samples = [read_sample(manifest, row) for row in range(2)]
    segments = [
        Segment(
            x_CTHW=sample.latent_CTHW,
            levels=FrameLevels.same(0.3, sample.latent_CTHW.shape[1]),
            text_nE=sample.text["short"],
        )
        for sample in samples
    ]
    layout = PackLayout(tokens_per_pack=16, patch_size=MODEL.patch_size)
    return [pack_segments([segment], layout) for segment in segments]


def test_a_predictor_says_what_the_model_says_in_its_precision(case: RunCase) -> None:
    dit, inputs = new_dit(3, scale=0.5), packs(case)
    with torch.no_grad():
        expected = [dit(pack) for pack in inputs]
    for ours, theirs in zip(Predictor(dit)(inputs), expected, strict=True):
        assert ours.is_inference()
        assert torch.equal(ours, theirs)
    exact = Predictor(dit.double())(inputs)
    assert {one.dtype for one in exact} == {torch.float64}
    for ours, theirs in zip(exact, expected, strict=True):
        torch.testing.assert_close(ours.float(), theirs, rtol=1e-4, atol=1e-5)
    assert Predictor(dit)([]) == []
