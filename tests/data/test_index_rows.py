import pytest

from data.index_rows import IndexConfig, IndexedSet
from data.latent_shard import read_latent_shard
from data.split import split_of
from tests.data.foreign_set import members, write_tar


def config(**changes):
    return IndexConfig(
        **({"codec": "c", "text": "t", "fps": 8.0, "strides": (4, 8, 8), "patch_size": (1, 2, 2)} | changes)
    )


def indexed(folder, shards, **changes):
    found = IndexedSet(config(**changes), text_dim=8)
    for name, samples in shards.items():
        write_tar(folder / name, samples)
        found.add(read_latent_shard(str(folder), name))
    return found


def test_rows_say_what_the_loader_needs(tmp_path):
    found = indexed(tmp_path, {"a.tar": {"k0": members(0), "pic": members(1, grid=(1, 4, 6), fps=None)}})
    columns = {name: values for name, values in found.columns.items() if "_offset" not in name and "xxh3" not in name}
    assert columns["key"] == ["k0", "pic"]
    assert columns["bucket"] == ["video-000016-000022", "image-000006-000007"]
    assert columns["video_tokens"] == [18, 6]
    assert columns["text_tokens"] == [3, 4]
    assert (columns["grid_t"], columns["grid_h"], columns["grid_w"]) == ([3, 1], [4, 4], [6, 6])
    assert (columns["modality"], columns["fps"]) == (["video", "image"], [8.0, 8.0])
    assert columns["split"] == [split_of("film0", 0.1), split_of("film1", 0.1)]


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (members(1, channels=8), "wrong channels: 8, but the first sample has 4"),
        (members(1, text_dim=6), "wrong text width: 6, but the null text has 8"),
        (members(1, grid=(3, 5, 6)), "off the lattice: latent grid (3, 5, 6) is no multiple of the patch (1, 2, 2)"),
        (members(1, fps=24), "fps: the json says 24, not 8: give --fps own, or the right rate"),
        (
            members(1, source="film0", split="heldout"),
            "source 'film0' is held out with one sample and not with another",
        ),
    ],
)
def test_samples_that_do_not_go_together_are_told(tmp_path, odd, message):
    found = indexed(tmp_path, {"a.tar": {"k0": members(0, split="train"), "k1": odd}})
    [line] = found.problems.lines(9)
    assert line.startswith(f"a.tar: k1: {message}")


def test_keys_of_two_shards_are_compared(tmp_path):
    found = indexed(tmp_path, {"a.tar": {"k": members(0)}, "b.tar": {"k": members(1)}})
    assert found.problems.lines(9) == ["b.tar: k: duplicate key: it is in a.tar too"]


def test_clips_may_keep_their_own_rates(tmp_path):
    found = indexed(tmp_path, {"a.tar": {"k0": members(0, fps=24), "k1": members(1, fps=None)}}, fps=None)
    assert found.columns["fps"] == [24.0]
    assert found.problems.lines(9) == ["a.tar: k1: no fps in the json: add it, or give one rate for all with --fps"]


def test_splits_are_those_of_the_json_unless_a_fraction_is_given(tmp_path):
    samples = {"a.tar": {f"k{n}": members(n, split="heldout") for n in range(8)}}
    assert set(indexed(tmp_path, samples).columns["split"]) == {"heldout"}
    assert set(indexed(tmp_path, samples, heldout_fraction=0.0).columns["split"]) == {"train"}


def test_the_summary_tells_what_is_missing(tmp_path):
    samples = {f"k{n}": members(n, source=None, split="train") for n in range(2)}
    other = members(2, captions={"long": "x"}, split="train")
    other["text.safetensors"] = other["text.safetensors"].replace(b'"short"', b'"long" ')
    lines = indexed(tmp_path, {"a.tar": samples | {"k2": other | {"png": b"x"}}}).lines()
    assert [line.split("  ")[0] for line in lines] == ["samples", "tokens", "buckets"] + ["note"] * 6
    assert any('2 samples have no "source"' in line for line in lines)
    assert any("only 1 of 3 samples have the caption 'long'" in line for line in lines)
    assert any("1 members .png are not used" in line for line in lines)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fps": -1.0}, "fps=-1.0 must be above 0"),
        ({"codec": ""}, "codec='' and text='t' must be named"),
        ({"strides": (0, 8, 8)}, "strides=.* must all be at least 1"),
        ({"heldout_fraction": 1.0}, "heldout_fraction=1.0"),
    ],
)
def test_configs_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)
