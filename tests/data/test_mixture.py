import numpy as np
import pytest

from data.mixture import DataSet, MixConfig, _modality_weights
from data.pack import PackPlan, Position
from tests.data.latent_set import sample, write_latents


@pytest.fixture(scope="module")
def manifests(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixture")
    first = write_latents(folder / "a", [sample(i) for i in range(40)])
    second = write_latents(folder / "b", [sample(i) for i in range(100, 130)])
    return first, second


def counts(data, epochs=4, **mix):
    """How often each row comes in each of the first epochs."""
    plan, position = PackPlan(data, seed=1, tokens_per_pack=100, window=20, mix=MixConfig(**mix)), Position()
    total = np.zeros((epochs, sum(len(manifest.rows) for manifest in data.manifests)), dtype=int)
    while position.epoch < epochs:
        packs, position = plan.step(position, 1)
        np.add.at(total[packs[0].epoch], list(packs[0].rows), 1)
    return total


def test_rows_are_numbered_through(manifests):
    both = DataSet(manifests=manifests, weights=(1.0, 1.0))
    rows = [0, 39, 40, 69, 5]
    assert both.keys(rows) == [manifests[0].keys([r])[0] if r < 40 else manifests[1].keys([r - 40])[0] for r in rows]
    assert both.place(39) == (manifests[0], 39) and both.place(40) == (manifests[1], 0)
    tokens = [manifests[r >= 40].row(r % 40 if r < 40 else r - 40)["video_tokens"] for r in rows]
    assert both.column("video_tokens", rows).tolist() == tokens
    assert len(both) == 70 and (counts(both) == 1).all()


def test_the_hash_is_of_rows_and_weights(manifests):
    assert DataSet.of(manifests[0]).hash == manifests[0].hash
    hashes = {DataSet(manifests=manifests, weights=weights).hash for weights in ((1.0, 1.0), (1.0, 0.5), (0.5, 1.0))}
    assert len(hashes) == 3


def test_manifests_come_by_their_weight(manifests):
    found = counts(DataSet(manifests=manifests, weights=(1.0, 0.5)))
    assert (found[:, :40] == 1).all()
    assert (found[:, 40:].sum(0) == 2).all(), "exactly half of four epochs"
    assert 8 <= found[0, 40:].sum() <= 22


def test_buckets_and_modalities_have_weights(manifests):
    data = DataSet.of(manifests[0])
    modality, bucket = data.column("modality", range(40)), data.column("bucket", range(40))
    found = counts(data, weights={"image": 2.0})
    assert ((found == 2) == (modality == "image")).all()
    name = bucket[modality == "video"][0]
    found = counts(data, weights={name: 0.0, "video": 3.0})
    assert (found[:, bucket == name] == 0).all()
    assert (found[:, (modality == "video") & (bucket != name)] == 3).all()


@pytest.mark.parametrize("fraction", [0.05, 0.5])
def test_images_get_their_share_of_the_tokens(manifests, fraction):
    data = DataSet.of(manifests[0])
    found = counts(data, epochs=40, image_fraction=fraction).mean(0)
    tokens, is_image = data.column("video_tokens", range(40)), data.column("modality", range(40)) == "image"
    share = (found * tokens)[is_image].sum() / (found * tokens).sum()
    assert share == pytest.approx(fraction, abs=0.02)
    assert found.max() <= 1


def test_large_samples_are_left_out(manifests):
    data = DataSet.of(manifests[0])
    found = counts(data, max_tokens=30)
    assert ((found == 1) == (data.column("video_tokens", range(40)) <= 30)).all()


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        (
            {"weights": {"imge": 2.0}},
            r"mix.weights.imge: there is no such bucket or modality in .*; the nearest is image",
        ),
        ({"weights": {"image": -1.0}}, r"mix.weights.image=-1.0 must be 0 or more"),
        ({"weights": {"image": float("nan")}}, r"mix.weights.image=nan must be 0 or more, and finite"),
        ({"weights": {"video": float("inf")}}, r"mix.weights.video=inf must be 0 or more, and finite"),
        ({"image_fraction": float("nan")}, r"mix.image_fraction=nan must be between 0 and 1"),
        ({"image_fraction": 1.5}, r"mix.image_fraction=1.5 must be between 0 and 1"),
        ({"weights": {"image": 0.0}, "image_fraction": 0.5}, r"there are 0 tokens of images and \d+ of videos"),
        ({"weights": {"image": 0.0, "video": 0.0}}, r"leave less than one sample an epoch of 40"),
        ({"max_tokens": 0}, r"mix.max_tokens=0 must be at least 1"),
    ],
)
def test_a_mixture_that_cannot_be_is_refused(manifests, mix, message):
    with pytest.raises(ValueError, match=message):
        PackPlan(DataSet.of(manifests[0]).head(40), seed=0, tokens_per_pack=100, mix=MixConfig(**mix))


@pytest.mark.parametrize(("images", "fraction"), [(True, 1.0), (False, 0.0)])
def test_a_share_that_is_met_already_changes_nothing(images, fraction):
    tokens = np.array([10, 20, 30])
    assert _modality_weights(tokens, np.full(3, images), fraction).tolist() == [1, 1, 1]
