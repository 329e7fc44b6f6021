"""No fault of a shard is silent: clips, latents in training, and latents made elsewhere.

A row per fault of `tar_faults.FAULTS`, a column per way that shards are read.
"""

import hashlib
import shutil

import pytest
import torch

from data.clips import read_clips, write_clip_shards
from data.index import index
from data.index_rows import SUMS_NAME, IndexConfig
from data.integrity import check_set
from data.lattice import ClipConfig
from data.loader import Loader
from data.manifest import FILE_NAME, Manifest
from data.mixture import DataSet
from data.pack import PackPlan
from data.report import ClipReport, Problems
from data.sample_reader import SampleReader
from tests.data.latent_set import sample, write_latents
from tests.data.media import source, video
from tests.data.tar_faults import FAULTS, Shards

CLIP = ClipConfig(fps=8.0, max_frames=17)
INDEX = IndexConfig(codec="c", text="t", fps=8.0, strides=(4, 8, 8), patch_size=(1, 2, 2))
WELL_FORMED = ("bit of the main payload", "bit of the json", "swapped payloads", "swapped shards")
"""Faults that leave good tars of good samples: of shards from elsewhere only their maker's checksums tell."""


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """Clip shards and latent shards that nothing is wrong with."""
    folder = tmp_path_factory.mktemp("faults")
    clips = [source(f"film/clip{i:04d}", video(frames=18 + 3 * i)) for i in range(8)]
    write_clip_shards(clips, folder / "clips", clips_per_shard=4)
    write_latents(folder / "latents", [sample(i, grid=(3, 4, 6)) for i in range(8)], samples_per_shard=4)
    return folder


def shards_of(folder, main):
    first, second = sorted(folder.rglob("*.tar"))
    return Shards(first, second, key="film/clip0002", other="film/clip0000", main=main)


def loaded(manifest):
    """All samples by key, or what the reader says."""
    reader = SampleReader(manifest)
    try:
        samples = [reader.read(row) for row in range(len(manifest))]
    except ValueError as error:
        return str(error)
    finally:
        reader.close()
    return {one.key: one for one in samples}


def trained(manifest):
    """Latents of an epoch by key, or what the loader says."""
    plan, latents = PackPlan(DataSet.of(manifest), seed=0, tokens_per_pack=40), {}
    packs = plan.packs_in_epoch()
    with Loader(plan, packs_per_step=1) as loader:
        try:
            for _ in range(packs):
                latents |= {one.key: one.latent_CTHW for pack in next(loader).packs for one in pack}
        except ValueError as error:
            return str(error)
    return latents


def are_whole(latents):
    return latents.keys() == {f"film/clip{i:04d}" for i in range(8)} and all(
        torch.equal(latent, sample(int(key[-4:]), grid=(3, 4, 6)).latent_CTHW) for key, latent in latents.items()
    )


def read_clip_shards(material, folder, fault):
    """What the report of the clips says, twice the same; no clip is handed out that is not as it was."""
    shutil.copytree(material / "clips", folder)
    good = {clip.key: clip for clip in read_clips(folder, CLIP)}
    told = fault(shards_of(folder, "mp4"))
    reports = [ClipReport(), ClipReport()]
    for report in reports:
        for clip in read_clips(folder, CLIP, report):
            assert clip.captions == good[clip.key].captions
            assert torch.equal(clip.frames_T3HW, good[clip.key].frames_T3HW)
    assert reports[0] == reports[1]
    return told, [str(item) for item in reports[0].skipped]


def train_on_latents(material, folder, fault):
    """What training says before and while it runs, and the doctor.

    Where training goes on all its samples are as they were: it reads by place, and no header can mislead it.
    """
    shutil.copytree(material / "latents", folder)
    opened = Manifest.read(folder)
    told = fault(shards_of(folder, "latent.safetensors"))
    while_running = [trained(opened), trained(opened)]
    if isinstance(while_running[0], str):
        assert while_running[0] == while_running[1]
        assert ".tar: sample film/clip" in while_running[0]
    else:
        assert are_whole(while_running[0])
    try:
        reopened = loaded(Manifest.read(folder))
    except ValueError as error:
        reopened = str(error)
    if isinstance(reopened, str):
        if fault in {FAULTS[name] for name in WELL_FORMED}:
            assert told.is_in(reopened)
        else:  # the shard and its bytes, or the first sample that is not where it was
            assert ".tar has " in reopened or ".tar: sample film/clip" in reopened
    else:
        assert are_whole({key: one.latent_CTHW for key, one in reopened.items()})
        assert all(one.captions == sample(int(key[-4:])).captions for key, one in reopened.items())
    problems = Problems()
    check_set(Manifest.read(folder, check_shards=False), problems, deep=True)
    return told, problems.lines(100)


def index_foreign_shards(material, folder, fault):
    """What the index lists; it writes nothing."""
    shutil.copytree(material / "latents", folder)
    (folder / FILE_NAME).unlink()
    if fault in {FAULTS[name] for name in WELL_FORMED}:
        sums = [(hashlib.sha256(path.read_bytes()).hexdigest(), path) for path in folder.rglob("*.tar")]
        (folder / SUMS_NAME).write_text("".join(f"{sha256}  {path.relative_to(folder)}\n" for sha256, path in sums))
    told = fault(shards_of(folder, "latent.safetensors"))
    before = sorted(folder.rglob("*"))
    manifest_hash, found = index(str(folder), INDEX)
    assert not manifest_hash
    assert sorted(folder.rglob("*")) == before
    return told, found.problems.lines(100)


@pytest.mark.parametrize("way", [read_clip_shards, train_on_latents, index_foreign_shards])
@pytest.mark.parametrize("name", FAULTS)
def test_no_fault_of_a_shard_is_silent(material, tmp_path, name, way):
    told, lines = way(material, tmp_path / "set", FAULTS[name])
    if way is index_foreign_shards and name in WELL_FORMED:
        told = type(told)(told.shard, ("wrong checksum",))
    assert any(told.is_in(line) for line in lines), f"{told} in none of {lines}"


def test_the_material_has_no_fault(material, tmp_path):
    report = ClipReport()
    assert len(list(read_clips(material / "clips", CLIP, report))) == 8
    assert not report.skipped
    assert are_whole(trained(Manifest.read(material / "latents")))
    shutil.copytree(material / "latents", tmp_path / "set")
    (tmp_path / "set" / FILE_NAME).unlink()
    manifest_hash, found = index(str(tmp_path / "set"), INDEX)
    assert manifest_hash
    assert not found.problems.count
    problems = Problems()
    check_set(Manifest.read(tmp_path / "set", check_shards=False), problems, deep=True)
    assert not problems.count
