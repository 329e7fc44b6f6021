"""Samples of a data set one at a time, by row; training reads them with `data.loader`."""

from dataclasses import replace

import torch

from data.arena import Region
from data.manifest import Manifest
from data.mixture import DataSet
from data.places import Places
from data.pool import Job
from data.reads import NEIGHBOURS, damage, plan_reads
from data.sample import Memory, Sample, build_sample, wanted_members
from data.worker import Files, describe, do_work


class SampleReader:
    """Reads samples of a data set by row, checking every byte it hands out.

    Without `latents` the samples have none, and their bytes are not read.
    """

    def __init__(self, data: DataSet | Manifest, *, latents: bool = True) -> None:
        self.data = DataSet.of(data) if isinstance(data, Manifest) else data
        self._wanted = wanted_members(latents=latents)
        self._files = Files()

    def read(self, row: int, *, caption_kind: str | None = None) -> Sample:
        """One sample; only one caption's embedding if a kind is named. ValueError names shard and key."""
        places = Places.of(self.data, [row]).supplied(self._wanted)
        reads = plan_reads(places, self._wanted, gap=NEIGHBOURS)
        memory = torch.empty(reads.num_bytes, dtype=torch.uint8)
        region = Region(tensor=memory, start=0, memory=memory.numpy().data)
        try:
            damaged = do_work(Job(0, reads, region, slice(0, len(reads))).work(), region.memory, self._files, _nothing)
        except OSError as error:
            raise ValueError(f"{places.where(0)} cannot be read ({describe(error)}): restore the shard") from error
        if damaged:
            raise ValueError(damage(reads, damaged[0]))
        sample = build_sample(places, 0, Memory(memory), reads.starts()[0])
        if not sample.is_finite:
            raise ValueError(f"{places.where(0)} has NaN or Inf in its latent or text: encode the clips again")
        if caption_kind is None:
            return sample
        if caption_kind not in sample.text:
            raise ValueError(f"{places.where(0)} has no caption {caption_kind!r}, but {', '.join(sorted(sample.text))}")
        return replace(sample, text={caption_kind: sample.text[caption_kind]})

    def close(self) -> None:
        """Close all shards."""
        self._files.close()


def read_sample(manifest: Manifest, row: int, caption_kind: str | None = None) -> Sample:
    """One sample of a manifest, checked; for many, keep a `SampleReader`."""
    reader = SampleReader(manifest)
    try:
        return reader.read(row, caption_kind=caption_kind)
    finally:
        reader.close()


def _nothing(read: int) -> None:
    """For readers that nobody asks where they are."""
