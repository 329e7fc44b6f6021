"""Runs on clips are runs on the same clips encoded; what goes wrong with a clip is told by its name."""

import os
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data.loader import Loader
from data.manifest import Manifest
from data.pack import Position
from data.rows import MEMBERS
from data.sample_reader import SampleReader
from data.step import ReadAhead
from parallel.runtime import Grid
from tests.trainer.online_case import config, words, write_codec
from trainer import evaluate, online
from trainer.build import open_shards
from trainer.encode import run as encode
from trainer.inference import load_for_inference
from trainer.look import look
from trainer.metrics import read_metrics
from trainer.online_plan import encode_config, with_plan

PARITY = 2e-5
NUMBERS = ("loss", "grad_norm", "heldout/loss", "position", "fill", "imbalance", "tokens")


@pytest.fixture(scope="module")
def whole(online_clips, commands):
    """The clips encoded, and the numbers of a run on them."""
    encode(encode_config(config(online_clips), folder=str(online_clips / "encoded_clips")))
    shards = {"data__clips": None, "data__folder": "encoded_clips", "folder": "encoded"}
    commands.run(words(**shards), cwd=online_clips).ok()
    return numbers(online_clips / "encoded")


def numbers(run):
    """Of the rows that have any: others tell of a stop or a checkpoint."""
    rows = [{name: row[name] for name in NUMBERS if name in row} for row in read_metrics(run)]
    return [row for row in rows if row]


def test_a_run_on_clips_has_the_numbers_of_one_on_encoded_clips(online_clips, commands, whole, monkeypatch):
    """Bit by bit, however much the cache has; a run that finds all of it loads no codec."""
    place = {"data__online__cache": "cache_whole"}
    said = commands.run([*words(folder="dry", **place), "dry_run=true"], cwd=online_clips).ok().err
    assert "on-line: 0 of " in said and "noise: cannot be decoded" in said
    assert not (online_clips / "dry").exists()
    first = commands.run(words(folder="first", **place), cwd=online_clips).ok()
    assert numbers(online_clips / "first") == whole
    assert sum("loss" in row for row in whole) == 8
    assert "encoding clips on cpu" in first.err
    again = commands.run(words(folder="again", **place), cwd=online_clips).ok()
    assert numbers(online_clips / "again") == whole
    assert "encoding clips" not in again.err and "planning" not in again.err
    monkeypatch.chdir(online_clips)
    is_looked_at_and_evaluated_like(Path("encoded"), Path("first"))


def is_looked_at_and_evaluated_like(encoded, run):
    shutil.rmtree("cache_whole/" + next(path.name for path in Path("cache_whole").glob("??")))
    assert look(run, 2, Path("sheet.png")) == look(encoded, 2, Path("sheet_encoded.png"))
    assert Path("sheet.png").stat().st_size > 10_000
    ours, theirs = (
        evaluate.open_heldout(evaluate.EvaluateConfig(run=str(one)), load_for_inference(one)).samples
        for one in (run, encoded)
    )
    assert [one.key for one in ours] == [one.key for one in theirs] != []
    assert all(one.latent_CTHW.equal(other.latent_CTHW) for one, other in zip(ours, theirs, strict=True))


def test_ranks_that_share_packs_and_those_that_do_not_train_the_same_run(online_clips, commands, whole):
    """Three steps by a tensor pair, of which one reads, two by a pipeline, and the rest by two replicas."""
    run = words(folder="ranks", data__online__cache="cache_ranks")
    for layout, steps in [("tp2", 3), ("pp2", 2)]:
        event = {"step": steps, "rank": 1, "signal": "SIGUSR1"}
        stopped = commands.run([*run, f"parallel={layout}"], cwd=online_clips, ranks=2, event=event)
        assert stopped.code == 75, stopped.err
    commands.run([*run, "parallel=dp2"], cwd=online_clips, ranks=2).ok()
    ours = numbers(online_clips / "ranks")
    for row, other in zip(ours, whole, strict=True):
        assert row.keys() == other.keys()
        for name, value in row.items():
            if name in ("loss", "grad_norm", "heldout/loss"):
                assert value == pytest.approx(other[name], rel=PARITY)
            elif name != "imbalance":  # of two replicas
                assert value == other[name]


def test_clips_are_mixed_with_encoded_ones_as_if_all_were_encoded(online_clips, whole, tmp_path):
    others = {"data__others": f"{{{online_clips / 'encoded_clips'}: 2.0}}"}
    shutil.copytree(online_clips / "encoded_clips", tmp_path / "copy")
    encoded = {"data__clips": None, "data__folder": tmp_path / "copy"}
    seen = []
    for given in ({"data__online__cache": tmp_path / "cache"}, encoded):
        plan = open_shards(with_plan(config(online_clips, **given, **others)))[1]
        with Loader(plan, packs_per_step=2, steps=6, ahead=ReadAhead(workers=0)) as loader:
            samples = [one for step in loader_steps(loader, 6) for pack in step.packs for one in pack]
        seen.append(
            [(one.key, one.index, one.latent_CTHW.sum(), sum(map(torch.sum, one.text.values()))) for one in samples]
        )
    assert seen[0] == seen[1]
    rows, indices = len(Manifest.read(tmp_path / "copy")), {index for _, index, *_ in seen[0]}
    assert min(indices) < rows <= max(indices), "some of either"


def loader_steps(loader, count):
    return [next(loader) for _ in range(count)]


def damage(clips, key):
    """Change a byte of a clip's file; returns the name of its shard."""
    for shard in clips.glob("*.tar"):
        held = bytearray(shard.read_bytes())
        if (start := held.find(f"{key}.mp4".encode())) >= 0:
            held[start + 512 + 100] ^= 1
            shard.write_bytes(held)
            return shard
    raise AssertionError(key)


def test_a_clip_that_changed_ends_all_ranks_with_its_name(online_clips, commands, tmp_path):
    shutil.copytree(online_clips / "clips", tmp_path / "clips")
    run = words(folder="run", data__codec=online_clips / "codec")
    with_plan(config(tmp_path, data__codec=online_clips / "codec"))
    damage(tmp_path / "clips", "shot4")
    sentence = commands.run([*run, "parallel=dp2"], cwd=tmp_path, ranks=2).refused()
    assert sentence.startswith("clips/clips-000001.tar: clip shot4 (window ")
    assert "is not the one that was planned (sha256): restore the shard, or make the clips again" in sentence


@pytest.fixture
def planned(online_clips, tmp_path):
    """Settings of a run whose clips are planned and not encoded, in folders of its own."""
    shutil.copytree(online_clips / "clips", tmp_path / "clips")
    shutil.copytree(online_clips / "codec", tmp_path / "codec")
    return with_plan(config(tmp_path))


def all_keys(planned):
    return Manifest.read(planned.data.folder).keys()


def supply_of(planned):
    return open_shards(planned)[0].manifests[0].supply


@pytest.mark.parametrize("workers", [0, 1])
def test_steps_before_a_bad_clip_are_trained_on(planned, tmp_path, workers):
    shards, plan = open_shards(planned)
    steps, position = [], Position()
    for _ in range(12):
        packs, position = plan.step(position, 2)
        steps.append([key for pack in packs for key in shards.keys(pack.rows)])
    bad = next(key for keys in steps[3:] for key in keys if key.startswith("shot") and not in_any(key, steps[:3]))
    damage(tmp_path / "clips", bad.split("_")[0])
    until = next(number for number, keys in enumerate(steps) if in_any(bad, [keys]))
    read = []
    with Loader(plan, packs_per_step=2, ahead=ReadAhead(workers=workers)) as loader:
        for _ in range(until):
            read.append([one.key for pack in next(loader).packs for one in pack])
        for _ in range(2):
            with pytest.raises(ValueError, match=rf"{bad.split('_')[0]}.* is not the one that was planned"):
                next(loader)
    assert read == steps[:until] and until >= 3


def in_any(key, steps):
    return any(other.split("_")[0] == key.split("_")[0] for keys in steps for other in keys)


def test_windows_of_a_clip_are_made_together_and_text_without_them(planned, monkeypatch):
    supply, decoded = supply_of(planned), []
    real = online.windows_of
    monkeypatch.setattr(online, "windows_of", lambda media, **rest: decoded.append(media.key) or real(media, **rest))
    keys = [key for key in all_keys(planned) if key.startswith("shot2_w")]
    assert len(keys) > 1
    text = supply(keys[0], ("json", "text"))
    assert text.keys() == {"json", "text"} and not decoded
    made = [supply(key, tuple(MEMBERS)) for key in keys]
    assert decoded == ["shot2"]
    assert len({one["latent"].path for one in made}) == len(keys)
    assert {one["text"].path for one in made} == {text["text"].path}
    os.truncate(made[0]["latent"].path, 100)
    assert [supply(key, tuple(MEMBERS)) for key in keys] == made and decoded == ["shot2", "shot2"]


def test_networks_leave_when_the_cache_has_everything(planned, monkeypatch):
    supply = supply_of(planned)
    monkeypatch.setattr(online, "_IDLE_SAMPLES", 3)
    keys = all_keys(planned)[:4]
    supply(keys[0], ("json", "text"))
    assert "_encoders" in vars(supply)
    for _ in range(3):
        supply(keys[0], ("json", "text"))
    assert "_encoders" not in vars(supply)
    assert supply(keys[1], ("json", "text")).keys() == {"json", "text"}


def test_a_latent_that_is_not_finite_is_told_with_its_clip(online_clips, tmp_path):
    shutil.copytree(online_clips / "clips", tmp_path / "clips")
    write_codec(tmp_path / "codec", bias=float("nan"))
    run = with_plan(config(tmp_path))
    reader = SampleReader(open_shards(run)[0])
    with pytest.raises(
        ValueError, match=r"clips-00000\d\.tar: clip \w+.*: not finite: latent .* float16: take the clip"
    ):
        reader.read(0)


def test_a_cache_that_cannot_be_written_is_told_with_the_clip(planned, tmp_path):
    supply, key = supply_of(planned), all_keys(planned)[0]
    record = supply._record(key)
    blocked = supply.cache.path(supply._text_key(record)).parent
    blocked.write_text("a file in the place of a folder")
    with pytest.raises(ValueError, match=rf"clip {record.clip_key}.*: data\.online\.cache=.* cannot be used"):
        supply(key, ("json", "text"))


def test_a_storage_that_does_not_answer_is_told_with_the_clip(planned, tmp_path):
    supply, key = supply_of(replace(planned, data=replace(planned.data, read_timeout_s=0.2))), all_keys(planned)[0]
    shard = tmp_path / "clips" / supply._record(key).shard
    shard.unlink()
    os.mkfifo(shard)  # opening it waits for somebody who writes
    why = r"nothing came within 0\.2 s\): restore the shard, or raise data\.read_timeout_s"
    with pytest.raises(ValueError, match=rf"{shard}: clip .* cannot be read \({why}"):
        supply(key, tuple(MEMBERS))
    os.close(os.open(shard, os.O_WRONLY))


def test_a_step_is_handed_out_before_the_next_is_made(planned, monkeypatch):
    real, release = online.OnlineEncoder.__call__, threading.Event()
    shards, plan = open_shards(planned)
    first = {*shards.keys([row for pack in plan.step(Position(), 2)[0] for row in pack.rows])}

    def held(supply, key, members):
        if key not in first:
            assert release.wait(60)
        return real(supply, key, members)

    monkeypatch.setattr(online.OnlineEncoder, "__call__", held)
    with Loader(plan, packs_per_step=2, ahead=ReadAhead(workers=0)) as loader:
        assert {key for keys in next(loader).keys for key in keys} == first
        release.set()


def test_closing_waits_for_no_clip_that_no_step_needs_any_more(planned, monkeypatch):
    """Neither those of steps that were read ahead, nor any after the last step."""
    real, asked, begun = online.OnlineEncoder.__call__, [], threading.Event()

    def slowly(supply, key, members):
        asked.append(key)
        if len(asked) == 3:
            begun.set()
            time.sleep(0.5)
        return real(supply, key, members)

    monkeypatch.setattr(online.OnlineEncoder, "__call__", slowly)
    plan = open_shards(planned)[1]
    with Loader(plan, packs_per_step=2, ahead=ReadAhead(workers=0)):
        assert begun.wait(60)
    assert len(asked) == 3
    asked.clear()
    begun.set()
    with Loader(plan, packs_per_step=1, steps=2, ahead=ReadAhead(workers=0)) as loader:
        rows = {row for _ in range(2) for row in next(loader).rows[0]}
        time.sleep(0.3)
    assert len(asked) >= len(rows) and {*asked} == {*open_shards(planned)[0].keys(sorted(rows))}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"data__codec": "nowhere"}, "nowhere is not a codec folder"),
        ({"data__clips": "nowhere"}, "clips=nowhere is not a folder"),
        ({"data__online__cache_bytes": 0}, "data.online.cache_bytes=0 must be at least 1"),
        ({"data__clips": None}, "data.folder=null: give latent shards, or data.clips="),
    ],
)
def test_what_cannot_be_trained_on_is_refused_at_once(online_clips, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        open_shards(with_plan(config(online_clips, **change)))


def test_a_limit_that_the_clips_do_not_fit_is_refused(online_clips, tmp_path):
    run = with_plan(config(online_clips, data__online__cache=tmp_path / "cache", data__online__cache_bytes=1000))
    manifest = open_shards(run)[0].manifests[0]
    with Grid(run.parallel) as grid, pytest.raises(ValueError, match=r"cache_bytes=1000 .* raise it, or take fewer"):
        online.begin(run, manifest, grid)


def test_what_a_run_will_need_is_counted_and_held_out_samples_are_made_first(planned):
    shards, _ = open_shards(planned)
    manifest = shards.manifests[0]
    sizes = manifest.supply.sizes(manifest)
    with Grid(planned.parallel) as grid:
        online.begin(planned, manifest, grid)
    made = manifest.supply.cache.lacks(sizes).keys() ^ sizes.keys()
    heldout = manifest.select("heldout")
    assert len(made) == len(heldout) + len(set(heldout.column("source"))) > 2, "windows of a clip share its text"
    for key in made:
        assert 0 <= sizes[key] - manifest.supply.cache.path(key).stat().st_size < 512
    assert f"{len(made)} of {len(sizes)} latents and texts" in manifest.supply.line(manifest)
