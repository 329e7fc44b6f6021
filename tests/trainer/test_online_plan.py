"""A plan of clips is the manifest of the same clips encoded, without encoding."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from data.latents import LatentConfig
from data.manifest import FILE_NAME, Manifest
from data.mixture import DataSet
from data.pack import PackPlan, Position
from tests.trainer.online_case import config
from trainer import encode
from trainer.online_plan import RECORDS_NAME, encode_config, read_records, with_plan


@pytest.fixture(scope="module")
def planned(online_clips):
    """A run's config, and its clips encoded under the same settings."""
    run = with_plan(config(online_clips, data__online__shards__samples_per_shard=3))
    encode.run(encode_config(run, folder=str(online_clips / "latents")))
    return run


def test_a_plan_has_the_rows_of_the_encoded_clips(planned, online_clips):
    plan, encoded = Manifest.read(planned.data.folder), Manifest.read(online_clips / "latents")
    assert len(plan) == len(encoded) > 14
    known = ("key", "shard", "source", "split", "video_tokens", "text_tokens", "fps", "modality", "bucket")
    for name in (*known, "grid_t", "grid_h", "grid_w", "latent_size", "text_size"):
        assert plan.column(name).tolist() == encoded.column(name).tolist(), name
    same = replace(encoded.identity, inputs=plan.identity.inputs)
    assert plan.identity == same
    assert plan.null_text().equal(encoded.null_text())
    assert (plan.outline, plan.select("train").outline) == (encoded.outline, encoded.select("train").outline)
    assert plan.hash != encoded.hash


def test_packs_are_those_of_the_encoded_clips(planned, online_clips):
    def stream(folder):
        order = PackPlan(DataSet.of(Manifest.read(folder).select("train")), seed=3, tokens_per_pack=48, window=5)
        position, packs = Position(), []
        for _ in range(12):
            step, position = order.step(position, 2)
            packs += [(pack.rows, pack.visits, pack.cost) for pack in step]
        return packs, position

    assert stream(planned.data.folder) == stream(online_clips / "latents")


def test_what_is_left_out_is_told_and_the_plan_made_once(planned, online_clips, caplog):
    report = json.loads((Path(planned.data.folder) / "report.json").read_text())
    assert [item["key"] for item in report["skipped"]] == ["noise"]
    made = os.stat(Path(planned.data.folder) / FILE_NAME).st_mtime_ns
    again = with_plan(replace(planned, data=replace(planned.data, folder=None)))
    assert again == planned
    assert os.stat(Path(again.data.folder) / FILE_NAME).st_mtime_ns == made
    shards = replace(planned.data.online, shards=LatentConfig(samples_per_shard=4))
    other = with_plan(replace(planned, data=replace(planned.data, folder=None, online=shards)))
    assert other.data.folder != planned.data.folder


def test_records_that_were_changed_are_refused(planned, tmp_path):
    for name in os.listdir(planned.data.folder):
        (tmp_path / name).write_bytes((Path(planned.data.folder) / name).read_bytes())
    assert read_records(tmp_path).keys() == set(Manifest.read(tmp_path).keys())
    text = (tmp_path / RECORDS_NAME).read_text()
    (tmp_path / RECORDS_NAME).write_text(text.replace("longer", "larger"))
    with pytest.raises(ValueError, match=r"clips\.jsonl is damaged .*: delete .* to plan the clips again"):
        read_records(tmp_path)
    (tmp_path / RECORDS_NAME).unlink()
    with pytest.raises(ValueError, match=r"clips\.jsonl cannot be read"):
        read_records(tmp_path)


def test_shards_and_clips_together_or_neither_are_refused(planned, online_clips):
    assert with_plan(planned) == planned, "the config of a run names its plan"
    both = replace(planned, data=replace(planned.data, folder="elsewhere"))
    with pytest.raises(ValueError, match=r"data\.folder=.* and data\.clips=.* are both given: leave out one"):
        with_plan(both)
    shards = replace(planned, data=replace(planned.data, clips=None))
    assert with_plan(shards) == shards
