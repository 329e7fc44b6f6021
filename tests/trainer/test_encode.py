import errno
import io
import json
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data import shards as shard_files
from data.clips import INDEX_NAME, Clip, read_clips, write_clip_shards
from data.latents import LatentConfig
from data.lattice import ClipConfig
from data.loader import Loader
from data.manifest import Manifest
from data.mixture import DataSet
from data.pack import PackPlan
from data.sample_reader import read_sample
from data.shards import ShardWriter
from model.codec import CodecConfig, build_codec, codec_identity, save_codec
from model.codec_patch import PatchCodecConfig
from model.text import TextConfig, TextEncoder
from tests.data.media import source, still, video
from trainer import encode
from trainer.encode import EncodeConfig, Encoders, run, same_size_batches

CLIP = ClipConfig(fps=8.0, max_frames=17)


def pooled(video_B3THW):
    """A codec of a kind: first frame, then means of four, each over 8 x 8 pixels."""
    first, rest = video_B3THW[:, :, :1], video_B3THW[:, :, 1:]
    rest_B3tHW = rest.unflatten(2, (-1, 4)).mean(3)
    return torch.nn.functional.avg_pool3d(torch.cat((first, rest_B3tHW), 2), (1, 8, 8))


def letters(texts):
    """A text encoder of a kind: one row a letter."""
    return [torch.tensor([[ord(c) / 128.0, 1.0] for c in text] or [[0.0, 1.0]]) for text in texts]


ENCODERS = Encoders(to_latent=pooled, to_text=letters, codec_identity="c" * 64, text_identity="t" * 64)


@pytest.fixture
def config(tmp_path, monkeypatch):
    clips = [source(f"shot{i}", video(frames=24 + 24 * (i % 3))) for i in range(7)]
    clips += [source("tall", video(height=112, width=64)), source("photo", still(), "png")]
    write_clip_shards(clips, tmp_path / "clips", clips_per_shard=4)
    monkeypatch.setattr(encode, "load_encoders", lambda config: ENCODERS)
    return EncodeConfig(
        clips=str(tmp_path / "clips"),
        codec="unused",
        folder=str(tmp_path / "latents"),
        clip=CLIP,
        text=TextConfig(),
        shards=LatentConfig(samples_per_shard=4, dtype="float32"),
        heldout_fraction=0.3,
    )


def test_every_clip_is_encoded_as_it_would_be_alone(config):
    manifest = run(config)
    rows = {key: row for row, key in enumerate(manifest.keys())}
    clips = list(read_clips(config.clips, CLIP))
    assert sorted(rows) == sorted(clip.key for clip in clips)
    for clip in clips:
        sample = read_sample(manifest, rows[clip.key])
        alone = pooled(clip.frames_T3HW.transpose(0, 1)[None].float() / 127.5 - 1)[0]
        torch.testing.assert_close(sample.latent_CTHW, alone, rtol=0, atol=1e-6)
        assert {kind: len(text) for kind, text in sample.text.items()} == {k: len(v) for k, v in clip.captions.items()}
        assert sample.source == clip.source
    assert {"train", "heldout"} == {manifest.row(row)["split"] for row in rows.values()}
    assert manifest.identity.caption_kinds == ("descriptive", "short")
    assert (manifest.identity.latent_channels, manifest.identity.text_dim) == (3, 2)
    assert torch.equal(manifest.null_text(), torch.tensor([[0.0, 1.0]]))


def test_clips_may_keep_their_own_rates(config, tmp_path):
    clips = [source("film", video(frames=24, fps=24)), source("tv", video(frames=50, fps=25))]
    write_clip_shards(clips, tmp_path / "rates")
    manifest = run(replace(config, clips=str(tmp_path / "rates"), clip=replace(CLIP, fps=None)))
    rates = {}
    for path in Path(config.folder).glob("*/*.tar"):
        with tarfile.open(path) as tar:
            for member in (m for m in tar if m.name.endswith(".json")):
                rates[member.name.removesuffix(".json")] = json.load(tar.extractfile(member))["fps"]
    assert rates == {"film_w00": 24.0, "film_w01": 24.0, "tv_w00": 25.0, "tv_w01": 25.0, "tv_w02": 25.0}
    assert sorted(rates) == sorted(manifest.keys())


def test_what_is_encoded_can_be_loaded(config):
    manifest = run(config).select("train")
    with Loader(PackPlan(DataSet.of(manifest), seed=0, tokens_per_pack=64), packs_per_step=2) as loader:
        step = next(loader)
    assert all(sum(s.video_tokens for s in pack) <= 64 for pack in step.packs)


def test_a_second_run_reuses_what_stands(config, caplog):
    first = run(config)
    before = {path: path.stat().st_mtime_ns for path in Path(config.folder).rglob("*")}
    caplog.set_level("INFO")
    assert run(config).hash == first.hash
    assert "stands: 11 samples of these clips, codec and settings; nothing to do" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in Path(config.folder).rglob("*")} == before


def test_other_inputs_are_refused_or_replaced_when_asked(config, monkeypatch):
    first = run(config)
    other = replace(ENCODERS, codec_identity="d" * 64)
    monkeypatch.setattr(encode, "load_encoders", lambda config: other)
    with pytest.raises(
        ValueError, match="holds latent shards of other clips, another codec or other settings: .* replace=true"
    ):
        run(config)
    assert Manifest.read(config.folder).hash == first.hash
    replaced = run(replace(config, replace=True))
    assert replaced.identity.codec == "d" * 64
    with pytest.raises(ValueError, match="encoded by another codec"):
        replaced.require_identity(codec="c" * 64)


def test_a_damaged_set_is_made_again_when_asked(config):
    manifest = run(config)
    (Path(config.folder) / manifest.shards[0].name).unlink()
    with pytest.raises(ValueError, match="is missing, though manifest.parquet lists it"):
        run(config)
    assert run(replace(config, replace=True)).hash == manifest.hash


def test_a_folder_of_something_else_is_left_alone(config):
    Path(config.folder).mkdir()
    (Path(config.folder) / "thesis.tex").write_text("years of work")
    for changed in (config, replace(config, replace=True)):
        with pytest.raises(ValueError, match="exists and holds no latent shards: give another folder"):
            run(changed)
    assert (Path(config.folder) / "thesis.tex").exists()


def test_corrupt_clips_are_skipped_counted_and_reported(config, caplog, tmp_path):
    clips = [source("good", video()), source("broken", video()[:1500]), source("blip", video(frames=3))]
    write_clip_shards(clips, tmp_path / "mixed")
    caplog.set_level("INFO")
    manifest = run(replace(config, clips=str(tmp_path / "mixed")))
    assert manifest.keys() == ["good"]
    report = json.loads((Path(config.folder) / "report.json").read_text())
    assert report["skipped_clips"] == 2 and report["source_clips"] == 1
    assert [item["key"] for item in report["skipped"]] == ["broken", "blip"]
    assert report["reasons"] == {"cannot be decoded": 1, "too short": 1}
    assert "skipped  2" in caplog.text and "clips-000000.tar: broken: cannot be decoded" in caplog.text


def test_latents_that_are_not_finite_are_skipped_and_reported(config, monkeypatch):
    broken = replace(ENCODERS, to_latent=lambda x: pooled(x) / (x.shape[-1] != 64 or x.shape[-2] != 112))
    monkeypatch.setattr(encode, "load_encoders", lambda config: broken)
    manifest = run(config)
    assert len(manifest) == 10 and "tall" not in set(manifest.keys())
    [item] = json.loads((Path(config.folder) / "report.json").read_text())["skipped"]
    assert (item["key"], item["reason"]) == ("tall", "not finite: latent has NaN or Inf as float32")


def test_nothing_usable_is_an_error_with_the_first_reason(config, tmp_path):
    write_clip_shards([source("broken", b"junk")], tmp_path / "bad")
    with pytest.raises(
        ValueError, match="no clip of clips=.*bad can be used: the first of 1 was clips-000000.tar: broken"
    ):
        run(replace(config, clips=str(tmp_path / "bad")))
    assert not Path(config.folder).exists()


def test_a_full_disk_leaves_no_folder(config, monkeypatch):
    class FullDisk(io.FileIO):
        def write(self, data):
            if str(self.name).endswith(".tar"):
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    monkeypatch.setattr(shard_files, "open", FullDisk, raising=False)
    with pytest.raises(OSError, match="the disk ran full while writing .*latents: nothing half-written was left there"):
        run(config)
    assert sorted(path.name for path in Path(config.folder).parent.iterdir()) == ["clips"]


def test_an_interruption_leaves_no_folder(config, monkeypatch):
    def interrupted(video_B3THW):
        raise KeyboardInterrupt

    monkeypatch.setattr(encode, "load_encoders", lambda config: replace(ENCODERS, to_latent=interrupted))
    with pytest.raises(SystemExit) as stop:
        run(config)
    assert stop.value.code == 130
    assert sorted(path.name for path in Path(config.folder).parent.iterdir()) == ["clips"]


def tree(folder):
    """Every file of a folder and its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def stop_at(batch, monkeypatch, error=KeyboardInterrupt):
    """Encoders that end with an error on batch number `batch`; returns the list of those encoded."""
    encoded = []

    def stopping(video_B3THW):
        if len(encoded) == batch:
            raise error
        encoded.append(len(video_B3THW))
        return pooled(video_B3THW)

    monkeypatch.setattr(encode, "load_encoders", lambda config: replace(ENCODERS, to_latent=stopping))
    return encoded


@pytest.fixture
def in_parts(config, tmp_path):
    """Three parts, with a bad clip in the first and a key of the first again in the last."""
    clips = [source("bad", video()[:1500]), *(source(f"shot{i}", video(frames=24 + 24 * (i % 3))) for i in range(10))]
    write_clip_shards(clips, tmp_path / "many", clips_per_shard=4)
    again = ShardWriter(tmp_path / "many", "again.tar")
    again.write("shot1", {"mp4": clips[2].media, "json": json.dumps(clips[2].meta).encode()})
    again.close()
    (tmp_path / "many" / INDEX_NAME).unlink()
    (tmp_path / "many" / "again.tar").rename(tmp_path / "many" / "clips-000003.tar")
    return replace(config, clips=str(tmp_path / "many"), clip_shards_per_part=1)


def test_a_time_limit_that_is_near_ends_a_run_after_a_part(in_parts, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    whole = run(replace(in_parts, folder=str(tmp_path / "whole")))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_END_TIME", "1")
    for _ in range(3):
        with pytest.raises(SystemExit) as stop:
            run(in_parts)
        assert stop.value.code == 75
    stops = [text for text in caplog.messages if text.startswith("stopped by the job's time limit (-")]
    assert len(stops) == 3 and "the finished parts are kept" in stops[0]
    assert run(in_parts).hash == whole.hash, "the last part needs nothing after it"
    assert any(text.startswith("goes on after 3 of 4 parts") for text in caplog.messages)


@pytest.mark.parametrize("batch", [3, 4, 6, 7])
def test_a_stopped_run_goes_on_and_ends_with_the_same_bytes(in_parts, tmp_path, monkeypatch, caplog, batch):
    caplog.set_level("INFO")
    whole = run(replace(in_parts, folder=str(tmp_path / "whole")))
    first = stop_at(batch, monkeypatch)
    with pytest.raises(SystemExit) as stop:
        run(in_parts)
    assert stop.value.code == 130 and not Path(in_parts.folder).exists()
    assert "the finished parts are kept" in caplog.text
    (Path(f"{in_parts.folder}.partial") / "null_text.safetensors").write_bytes(b"half")
    second = stop_at(1000, monkeypatch)
    resumed = run(in_parts)
    assert resumed.hash == whole.hash
    ours, theirs = tree(in_parts.folder), tree(tmp_path / "whole")
    assert ours == theirs and json.loads(ours["report.json"])["skipped_clips"] == 2
    assert 0 < sum(second) < len(whole) and sum(first) > 0
    assert not Path(f"{in_parts.folder}.partial").exists()


def test_an_error_keeps_the_finished_parts_and_other_inputs_remove_them(in_parts, monkeypatch, caplog):
    caplog.set_level("INFO")
    stop_at(4, monkeypatch, RuntimeError("out of memory"))
    with pytest.raises(RuntimeError, match="out of memory"):
        run(in_parts)
    assert Path(f"{in_parts.folder}.partial").is_dir()
    encoded = stop_at(1000, monkeypatch)
    other = run(replace(in_parts, heldout_fraction=0.5))
    assert "was begun from other clips, another codec or other settings: it is removed" in caplog.text
    assert sum(encoded) == len(other)


def test_a_kept_shard_that_was_cut_is_refused(in_parts, monkeypatch):
    stop_at(4, monkeypatch)
    with pytest.raises(SystemExit):
        run(in_parts)
    path = sorted(Path(f"{in_parts.folder}.partial").glob("video*/*.tar"))[0]
    path.write_bytes(path.read_bytes()[:-512])
    stop_at(1000, monkeypatch)
    with pytest.raises(ValueError, match=r"is missing or cut off: delete .*latents.partial to encode from the start"):
        run(in_parts)


def test_a_dry_run_writes_nothing(config, caplog):
    caplog.set_level("INFO")
    assert run(replace(config, dry_run=True)) is None
    assert f"codec {ENCODERS.codec_identity}, text encoder {ENCODERS.text_identity}" in caplog.text
    assert "(3 shards, 9 clips)" in caplog.text
    assert not Path(config.folder).exists()


def test_a_real_codec_and_text_encoder(config, tmp_path, monkeypatch):
    monkeypatch.undo()
    torch.manual_seed(0)
    codecs = {name: build_codec(CodecConfig(patch=PatchCodecConfig(width=8))) for name in ("one", "two")}
    for name, codec in codecs.items():
        codec.set_latent_statistics(mean_C=torch.full((16,), 0.5), scale_C=torch.full((16,), 2.0))
        save_codec(codec, tmp_path / name)
    config = replace(config, codec=str(tmp_path / "one"))
    manifest = run(config)
    manifest.require_identity(codec=codec_identity(tmp_path / "one"), text=TextEncoder(TextConfig()).identity())
    with pytest.raises(ValueError, match="another codec"):
        manifest.require_identity(codec=codec_identity(tmp_path / "two"))
    clip = next(clip for clip in read_clips(config.clips, CLIP) if clip.key == "tall")
    sample = read_sample(manifest, manifest.keys().index("tall"))
    video_B3THW = clip.frames_T3HW.transpose(0, 1)[None].float() / 127.5 - 1
    with torch.inference_mode():
        expected_CTHW = codecs["one"].eval().to_latent(video_B3THW)[0]
    torch.testing.assert_close(sample.latent_CTHW, expected_CTHW, rtol=1e-5, atol=1e-5)
    expected_nE = TextEncoder(TextConfig()).encode([clip.captions["short"]])[0]
    torch.testing.assert_close(sample.text["short"], expected_nE, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="holds latent shards of other clips, another codec or other settings"):
        run(replace(config, codec=str(tmp_path / "two")))


def test_strides_of_the_clips_must_be_the_codecs(config, tmp_path, monkeypatch):
    monkeypatch.undo()
    save_codec(build_codec(CodecConfig(patch=PatchCodecConfig(width=8, strides=(2, 8, 8)))), tmp_path / "odd")
    with pytest.raises(ValueError, match=r"has strides \(2, 8, 8\), but clip.strides=\(4, 8, 8\)"):
        run(replace(config, codec=str(tmp_path / "odd")))


def a_clip(number, *shape):
    frames = torch.zeros(shape[0], 3, *shape[1:], dtype=torch.uint8)
    return Clip(
        key=str(number),
        frames_T3HW=frames,
        captions={},
        source="",
        fps=8.0,
        start_s=0.0,
        native_height=1,
        native_width=1,
        shard="",
        clip_key="",
        window=0,
    )


def test_batches_hold_one_size_and_keep_their_pixels():
    sizes = [(1, 16, 16), (5, 16, 16), (1, 16, 32)]
    clips = [a_clip(i, *sizes[i * 7 % 3]) for i in range(100)]
    batches = list(same_size_batches(clips, 5 * 256 * 3))
    assert sorted(int(clip.key) for batch in batches for clip in batch) == list(range(100))
    for batch in batches:
        assert len({clip.frames_T3HW.shape for clip in batch}) == 1
        assert sum(clip.frames_T3HW[:, 0].numel() for clip in batch) <= 5 * 256 * 3
        assert [int(clip.key) for clip in batch] == sorted(int(clip.key) for clip in batch)


def test_few_clips_wait_whatever_the_sizes():
    taken = []

    def clips():
        for number in range(500):
            taken.append(number)
            yield a_clip(number, 1, 16, 16 * (1 + number % 250))

    seen = 0
    for batch in same_size_batches(clips(), 40_000):
        seen += len(batch)
        if len(taken) < 500:
            assert len(taken) - seen < 160
    assert seen == 500


def command(*overrides):
    words = [sys.executable, "-m", "trainer.encode", *overrides]
    return subprocess.run(words, capture_output=True, text=True, timeout=180, check=False)


def test_missing_clips_end_the_command_with_one_sentence(tmp_path):
    result = command(f"clips={tmp_path}/none", "codec=none", f"folder={tmp_path}/out")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert f"clips={tmp_path}/none is not a folder: give the folder of clip shards" in result.stderr


def test_shards_left_aside_by_an_interrupted_replacement_stand_again(config):
    made, folder = run(config), Path(config.folder)
    folder.rename(folder.with_name(f".{folder.name}.replaced"))
    assert run(config).hash == made.hash
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(folder.name)] == [folder.name]
