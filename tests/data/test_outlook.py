import numpy as np
import pytest
from PIL import Image

from data.balance import PackCost
from data.manifest import BucketSize
from data.mixture import DataSet
from data.outlook import Distribution, PackSettings, foretell, foretell_clips, starving
from data.pack import PackPlan, Position, too_large
from tests.data.latent_set import sample, write_latents


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_latents(tmp_path_factory.mktemp("outlook") / "set", [sample(i) for i in range(60)])


def settings(**changes):
    return PackSettings(**({"tokens_per_pack": 100, "window": 25, "cost": PackCost()} | changes))


def test_an_epoch_is_the_one_that_training_plans(manifest):
    outlook = foretell(manifest, settings(packs_per_step=2, ranks=2))
    plan = PackPlan(DataSet.of(manifest), seed=0, tokens_per_pack=100, window=25)
    packs = plan.packs_in_epoch()
    tokens = int(manifest.column("video_tokens").sum())
    assert (outlook.packs, outlook.steps, outlook.is_estimate) == (packs, packs / 2, False)
    assert outlook.fill == tokens / (packs * 100)
    planned, _ = plan.step(Position(), 2)
    costs = [pack.cost for pack in planned]
    assert outlook.imbalance_max >= max(costs) / np.mean(costs)
    assert 1 <= outlook.imbalance_mean <= outlook.imbalance_max


def test_a_long_epoch_is_estimated_from_its_beginning(manifest):
    exact, estimate = foretell(manifest, settings()), foretell(manifest, settings(most_steps=6))
    assert estimate.is_estimate
    assert abs(estimate.packs / exact.packs - 1) < 0.35
    assert estimate.lines(settings())[0].startswith("epoch    about ")


def test_an_epoch_shorter_than_a_step_has_no_balance(manifest):
    packs = PackPlan(DataSet.of(manifest), seed=0, tokens_per_pack=100, window=25).packs_in_epoch()
    for more, line in (
        (0, "balance  the busiest of 1 ranks "),
        (1, f"balance  no whole step is in an epoch: it has {packs} "),
    ):
        given = settings(packs_per_step=packs + more)
        assert foretell(manifest, given).lines(given)[-1].startswith(line)
    given = settings(packs_per_step=packs + 1)
    assert f"and a step takes {packs + 1} (--packs-per-step)" in foretell(manifest, given).lines(given)[-1]


def test_samples_that_no_pack_holds_are_named_and_left_out(manifest):
    large = too_large(manifest, 50)
    [(name, (count, key, tokens))] = large.items()
    numbers = manifest.column("video_tokens")
    assert (name, count, tokens) == ("video-000064-000090", int((numbers > 50).sum()), 80)
    assert numbers[manifest.keys().index(key)] == 80
    assert not too_large(manifest, 80)
    outlook = foretell(manifest, settings(tokens_per_pack=50))
    assert outlook.fill == numbers[numbers <= 50].sum() / (outlook.packs * 50)
    assert foretell(manifest, settings(tokens_per_pack=1)).fill == 1.0


def test_nothing_is_foretold_where_no_sample_fits(tmp_path):
    manifest = write_latents(tmp_path / "set", [sample(i, grid=(5, 8, 8)) for i in range(3)])
    assert foretell(manifest, settings(tokens_per_pack=79)) is None
    assert foretell_clips([80, 90], settings(tokens_per_pack=79)) is None


def test_clips_are_packed_alike(manifest):
    tokens = manifest.column("video_tokens").tolist()
    outlook = foretell_clips(tokens, settings(window=1000))
    assert outlook.packs == foretell(manifest, settings(window=1000)).packs
    assert outlook.imbalance_mean is None
    assert len(outlook.lines(settings())) == 2


def test_buckets_seen_too_seldom_starve(manifest):
    buckets = manifest.buckets()
    assert not starving(buckets, 100, 100)
    lines = starving(buckets, 2000, 100)
    assert len(lines) == len(buckets)
    assert lines[0].startswith("image-000001-000001: 9 samples in an epoch of 2,000 steps, one every 222 steps: raise")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens_per_pack": 0}, "--tokens-per-pack 0 must be at least 1"),
        ({"packs_per_step": 0}, "--packs-per-step 0 must be at least 1"),
        ({"packs_per_step": 6, "ranks": 4}, "--packs-per-step 6 must be a multiple of --ranks 4: take 8"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        settings(**changes)


SIZES = {
    "image-000001-000001": BucketSize(samples=6, tokens=6, shards=1, bytes=1),
    "video-000064-000090": BucketSize(samples=2, tokens=150, shards=2, bytes=1),
}


def test_the_table_has_a_bar_for_each_bucket():
    distribution = Distribution(buckets=SIZES)
    assert (distribution.samples, distribution.tokens) == (8, 156)
    header, image, video = distribution.lines()
    assert image.split() == ["image-000001-000001", "6", "6", "1", "3.8%", "#"]
    assert video.split() == ["video-000064-000090", "2", "150", "2", "96.2%", "#" * 30]
    assert header.startswith("bucket")


def test_the_picture_has_longer_bars_for_more(tmp_path):
    Distribution(buckets=SIZES).save_picture(tmp_path / "p.png", "a set")
    with Image.open(tmp_path / "p.png") as image:
        pixels = image.convert("RGB")
    colours = pixels.getcolors(1 << 20)
    count = {colour: number for number, colour in colours}
    orange, blue = count[(0xD9, 0x77, 0x06)], count[(0x25, 0x63, 0xEB)]
    # Longest bars are alike in both panels: samples are 6 and 2, tokens 6 and 150.
    assert abs(orange / blue - (1 + 6 / 150) / (2 / 6 + 1)) < 0.02
