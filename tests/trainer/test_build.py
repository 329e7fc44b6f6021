"""What a run is put together from, and what it refuses to be put together from."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra import compose, initialize_config_dir

from data.pack import Position
from tests.trainer.run_case import ROOT, overrides, write_inputs
from trainer.build import Run, heldout_of, open_shards
from trainer.compose import to_dataclass
from trainer.config import TrainConfig


@pytest.fixture(scope="module")
def config(inputs):
    places = {"data__folder": inputs / "latents", "data__codec": inputs / "codec", "folder": inputs / "built"}
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return to_dataclass(TrainConfig, compose("train", overrides(**places)))


def test_groups_of_any_names_are_overridden_as_the_guide_says(inputs):
    places = {"data__folder": inputs / "latents", "data__codec": inputs / "codec", "folder": inputs / "built"}
    given = ["data.mix.weights={image: 0.5, video: 2}", "data.others={runs/b/latents: 0.5}"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = to_dataclass(TrainConfig, compose("train", [*overrides(**places), *given]))
    assert config.data.mix.weights == {"image": 0.5, "video": 2.0}
    assert config.data.others == {"runs/b/latents": 0.5}


def with_section(config, section, **changes):
    return replace(config, **{section: replace(getattr(config, section), **changes)})


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_weights_of_folders_are_numbers_above_0(config, weight):
    for changes in ({"weight": weight}, {"others": {"b/latents": weight}}):
        with pytest.raises(ValueError, match=rf"the weight {weight} of .*latents must be above 0 and finite"):
            with_section(config, "data", **changes)


def test_only_the_training_split_is_trained_on(config):
    shards, plan = open_shards(config)
    packs, _ = plan.step(Position(), plan.plans[0].packs_in_epoch())
    trained = [key for pack in packs for key in shards.keys(pack.rows)]
    heldout = heldout_of(config, shards.manifests[0])
    assert sorted(trained) == [f"clip{number}" for number in range(8)]
    assert [sample.key for sample in heldout.samples] == ["clip8", "clip9"]


def test_what_one_set_holds_out_no_other_trains_on(config, tmp_path):
    write_inputs(tmp_path, samples=12)  # the last two are held out: not those of the other set
    mixed = with_section(config, "data", others={str(tmp_path / "latents"): 1.0})
    with pytest.raises(ValueError, match=r"data\.others: .* trains on shot8, one of 2 sources that .* holds out"):
        open_shards(mixed)


def test_the_first_samples_alone_when_asked(config):
    _, plan = open_shards(with_section(config, "data", limit_samples=2))
    packs, _ = plan.step(Position(), 6)
    data = plan.plans[0].data
    assert {row for pack in packs for row in pack.rows} == set(data.manifests[0].row_numbers)
    assert len(data) == 2


@pytest.mark.parametrize(
    ("section", "changes", "sentence"),
    [
        ("model", {"in_channels": 4}, r"model\.in_channels=4, but the latents in .* have 16 channels: set \+model"),
        ("model", {"out_channels": 4}, r"model\.out_channels=4, but the latents"),
        ("model", {"text_dim": 8}, r"model\.text_dim=8, but the captions in .* embedded in 384 values: set"),
        ("model", {"patch_size": (1, 1, 1)}, r"patch size \(1, 2, 2\), but the model has \(1, 1, 1\): change"),
        ("data", {"tokens_per_pack": 8}, r"sample clip\d has 12 tokens, above data\.tokens_per_pack=8 .* at least 12"),
    ],
)
def test_what_does_not_fit_the_shards_is_refused(config, section, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        open_shards(with_section(config, section, **changes))


def test_what_is_observed_along_the_way_is_checked_before_the_first_step(config):
    odd = with_section(config, "samples", prompts=("a rabbit",), height=40)
    open_shards(odd)
    with pytest.raises(ValueError, match=r"samples: height=40 is not a multiple of 16: take 32 or 48"):
        open_shards(with_section(odd, "run", sample_every=5))
    unknown = with_section(config, "evaluation", caption_kind="long")
    open_shards(unknown)
    with pytest.raises(ValueError, match=r"evaluation\.caption_kind=long, but .* of kind short, descriptive: set it"):
        open_shards(with_section(unknown, "run", evaluate_every=5))


def stage_run(config, *, first, last):
    """What a rank of a stage reads from."""
    shards, plan = open_shards(config)
    manifest = shards.manifests[0]
    grid = SimpleNamespace(data_rank=0, data_size=1, is_first_stage=first, is_last_stage=last, is_first_of_packs=True)
    grid.device, grid.pack_group = torch.device("cpu"), SimpleNamespace(size=lambda: 1)
    parts = {
        "config": config,
        "grid": grid,
        "manifest": manifest,
        "shards": shards,
        "plan": plan,
        "null_text": manifest.null_text(),
    }
    return Run(**parts, engine=None, heldout=None, samples=None, metrics=None, starts=None)


@pytest.mark.parametrize(
    ("first", "last"), [(True, False), (False, False), (False, True)], ids=["first", "middle", "last"]
)
def test_only_the_ends_of_a_pipeline_read_latents(config, first, last):
    built = []
    for run in (stage_run(config, first=True, last=True), stage_run(config, first=first, last=last)):
        with run.loader(Position()) as loader:
            batch = next(loader)
        built.append(run.microbatches(batch))
    assert all((one.latent_CTHW is not None) == (first or last) for pack in batch.packs for one in pack)
    for whole, part in zip(*built, strict=True):
        assert (part.inputs.patch_LP is not None) == first
        assert (part.target_LP is not None) == last
        assert not first or torch.equal(part.inputs.patch_LP, whole.inputs.patch_LP)
        assert not last or torch.equal(part.target_LP, whole.target_LP)
        assert torch.equal(part.inputs.text_KE, whole.inputs.text_KE)
        assert torch.equal(part.weight_L, whole.weight_L)


def test_of_ranks_with_the_same_packs_one_reads_and_the_others_are_handed_them(config):
    box, batches = [], []
    for is_first, hand_on in ((True, lambda memory: box.append(memory.clone())), (False, lambda m: m.copy_(box.pop()))):
        run = stage_run(config, first=True, last=True)
        run.grid.is_first_of_packs, run.grid.hand_on = is_first, hand_on
        run.grid.pack_group = SimpleNamespace(size=lambda: 2)
        with run.loader(Position()) as loader:
            assert loader.share.reads == is_first
            batches.append(next(loader))
    for one, other in zip(*(run.microbatches(batch) for batch in batches), strict=True):
        assert torch.equal(one.inputs.patch_LP, other.inputs.patch_LP)
        assert torch.equal(one.inputs.text_KE, other.inputs.text_KE)
        assert torch.equal(one.target_LP, other.target_LP)


def test_nothing_is_written(config):
    open_shards(config)
    assert not Path(config.folder).exists()
