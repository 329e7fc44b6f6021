import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data.clips import write_clip_shards
from data.lattice import ClipConfig
from data.split import split_of
from diffusion.noise import keyed_generator
from tests.data.media import source
from tests.trainer.codec_case import write_clips
from trainer.codec_clips import augment, batch_order, read_sets, to_video
from trainer.codec_config import CodecDataConfig

CLIP = ClipConfig(fps=12.0, max_frames=9)
DATA = CodecDataConfig(pixels_per_batch=60_000, heldout_fraction=0.3)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> str:
    return str(write_clips(tmp_path_factory.mktemp("codec_clips") / "clips"))


def test_sources_are_held_out_whole(clips):
    sets = read_sets(clips, CLIP, DATA)
    assert sets.is_whole
    assert {split_of(clip.source, 0.3) for clip in sets.training} == {"train"}
    assert {split_of(clip.source, 0.3) for clip in sets.heldout} == {"heldout"}


def test_a_pass_shows_every_clip_once_in_batches_of_one_size(clips):
    sets = read_sets(clips, CLIP, DATA)
    sizes = [tuple(clip.frames_T3HW.shape) for clip in sets.training]
    order = batch_order(sizes, pixels_per_batch=60_000, generator=keyed_generator(0))
    assert sorted(itertools.chain(*order)) == list(range(len(sizes)))
    for pick in order:
        assert len({sizes[index] for index in pick}) == 1
        frames, _, height, width = sizes[pick[0]]
        assert len(pick) == 1 or len(pick) * frames * height * width <= 60_000
    assert max(len(pick) for pick in order) > 1
    assert order != batch_order(sizes, pixels_per_batch=60_000, generator=keyed_generator(1))


def test_skipping_is_what_was_taken_before(clips):
    sets = read_sets(clips, CLIP, DATA)
    batches = list(itertools.islice(sets.batches(seed=3), 20))
    for skip in (1, 7, 15):
        rest = list(itertools.islice(sets.batches(seed=3, skip=skip), 20 - skip))
        assert all(torch.equal(a, b) for a, b in zip(batches[skip:], rest, strict=True))


def test_small_pools_show_every_clip_too(clips):
    whole = read_sets(clips, CLIP, DATA)
    biggest = max(clip.frames_T3HW.numel() for clip in whole.training)
    sets = read_sets(clips, CLIP, replace(DATA, pool_bytes=2 * biggest))
    assert not sets.is_whole
    pools = sets.pools()
    seen: list[str] = []
    while len(seen) < len(whole.training):
        seen += [clip.key for clip in next(pools)]
    assert seen == [clip.key for clip in whole.training]
    assert [clip.key for clip in next(pools)] == [clip.key for clip in sets.training]


def test_a_clip_skipped_in_a_later_pool_is_reported_once(clips, tmp_path, caplog):
    # In a shard of its own, after all others, so that the first pool does not see it.
    for shard in sorted(Path(clips).glob("*.tar")):
        (tmp_path / shard.name).write_bytes(shard.read_bytes())
    write_clip_shards([source("broken", b"no video")], tmp_path / "more")
    (tmp_path / "more" / "clips-000000.tar").rename(tmp_path / "clips-last.tar")
    shots = read_sets(clips, CLIP, DATA).training
    small = replace(DATA, pool_bytes=2 * shots[0].frames_T3HW.numel(), heldout_clips=1)
    sets = read_sets(str(tmp_path), CLIP, small)
    assert not sets.report.skipped
    shown = sum(1 for _ in itertools.takewhile(lambda pool: pool[-1].key != shots[-1].key, sets.pools()))
    for _ in itertools.islice(sets.pools(), 3 * (shown + 2)):
        pass
    assert [item.key for item in sets.report.skipped] == ["broken"]
    assert caplog.text.count("broken: cannot be decoded") == 1


def test_nothing_to_train_on_is_a_clear_error(clips):
    with pytest.raises(ValueError, match="no clip held out.*more sources"):
        read_sets(clips, CLIP, replace(DATA, heldout_fraction=0.0))


def test_pixels_become_minus_one_to_one():
    frames = torch.tensor([0, 255], dtype=torch.uint8).view(1, 2, 1, 1, 1).expand(1, 2, 3, 4, 6)
    video = to_video(frames)
    assert video.shape == (1, 3, 2, 4, 6)
    assert video[:, :, 0].unique().tolist() == [-1]
    assert video[:, :, 1].unique().tolist() == [1]


def test_augmentation_crops_one_stride_anywhere_and_flips_both_ways():
    rows, columns = torch.arange(32.0).view(32, 1), torch.arange(48.0).view(1, 48)
    video = (100 * rows + columns).expand(1, 3, 1, 32, 48)
    corners = set()
    for draw in range(300):
        made = augment(video, (4, 8, 8), generator=keyed_generator(draw))
        assert made.shape == (1, 3, 1, 24, 40)
        lines, places = (made[0, 0, 0, :, 0] // 100), made[0, 0, 0, 0] % 100
        assert lines.diff().abs().unique().tolist() == [1]
        assert places.diff().abs().unique().tolist() == [1]
        corners.add((min(lines).item(), min(places).item(), bool(lines[0] > lines[1]), bool(places[0] > places[1])))
    assert {corner[0] for corner in corners} == set(range(9))
    assert {corner[1] for corner in corners} == set(range(9))
    assert {corner[2:] for corner in corners} == {(False, False), (False, True), (True, False), (True, True)}


def test_augmentation_leaves_frames_of_one_patch_whole():
    made = augment(torch.rand(1, 3, 1, 8, 24), (4, 8, 8), generator=keyed_generator(0))
    assert made.shape == (1, 3, 1, 8, 16)
