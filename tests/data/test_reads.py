from pathlib import Path

import numpy as np
import pytest

from data import reads as reading
from data.mixture import DataSet
from data.places import Places
from data.reads import NEIGHBOURS, packed_starts, plan_reads
from tests.data.latent_set import sample, write_latents

ALL = ("json", "latent", "text")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_latents(tmp_path_factory.mktemp("reads") / "set", [sample(i) for i in range(60)], samples_per_shard=20)


def members_read(places, planned):
    """(sample, member) -> the bytes that a read brings to its place."""
    memory = np.zeros(planned.num_bytes, dtype=np.uint8)
    for shard, start, size, at in zip(planned.shard, planned.start, planned.size, planned.at, strict=True):
        data = Path(planned.shards[shard].name).read_bytes()[start : start + size]
        memory[at : at + size] = np.frombuffer(data, dtype=np.uint8)
    starts = planned.starts()
    sizes = {member: places.columns[f"{member}_size"] for member in planned.members}
    return {
        (number, member): bytes(memory[at : at + sizes[member][number]])
        for number, members in enumerate(starts)
        for member, at in members.items()
    }


def members_stored(places, members):
    found = {}
    for number, row in enumerate(places.rows):
        manifest, own = places.data.place(int(row))
        place = manifest.row(own)
        data = (Path(manifest.folder) / place["shard"]).read_bytes()
        for member in members:
            start = place[f"{member}_offset"]
            found[number, member] = data[start : start + place[f"{member}_size"]]
    return found


@pytest.mark.parametrize("members", [ALL, ("json", "text")])
@pytest.mark.parametrize("gap", [0, NEIGHBOURS, 5000, None])
@pytest.mark.parametrize("longest", [3000, 4 << 20])
def test_every_member_is_read_to_its_place(manifest, monkeypatch, members, gap, longest):
    monkeypatch.setattr(reading, "LONGEST_LOCAL", longest)
    places = Places.of(DataSet.of(manifest), [3, 57, 4, 5, 30, 31, 8])
    planned = plan_reads(places, members, gap=gap, urgency=np.array([2, 0, 1, 2, 0, 1, 2]))
    assert members_read(places, planned) == members_stored(places, members)
    assert int(planned.count.sum()) == len(places) * len(members)
    need = [2, 0, 1, 2, 0, 1, 2]
    first = [min(need[o] for o in part) for part in np.split(planned.owner, np.cumsum(planned.count)[:-1])]
    assert first == sorted(first), "what is needed first is read first"


def test_reads_do_not_overlap_in_memory(manifest):
    planned = plan_reads(Places.of(DataSet.of(manifest), range(0, 60, 3)), ALL)
    order = np.argsort(planned.at)
    assert bool((planned.at[order][1:] >= (planned.at + planned.size)[order][:-1]).all())
    assert int((planned.at + planned.size).max()) <= planned.num_bytes
    assert bool(((planned.at - planned.start) % 64 == 0).all())


def test_neighbours_are_one_read_and_the_wider_the_gap_the_fewer_reads(manifest):
    rows = list(range(10, 20))
    places = Places.of(DataSet.of(manifest), rows)
    counts = [len(plan_reads(places, ALL, gap=gap)) for gap in (0, NEIGHBOURS, 1 << 20)]
    assert counts[0] == 30
    assert counts[0] > counts[1] >= counts[2] == len(set(places.shard.tolist()))


def test_a_long_run_is_cut_for_workers_to_share(manifest, monkeypatch):
    monkeypatch.setattr(reading, "LONGEST_LOCAL", 4000)
    places = Places.of(DataSet.of(manifest), range(60))
    longest = max(int(places.columns["latent_size"].max()), 4000)
    assert int(plan_reads(places, ALL).size.max()) <= longest + 4000


def test_places_in_a_packed_copy_lie_apart(manifest):
    places = Places.of(DataSet.of(manifest), [1, 2, 9])
    starts, size = packed_starts(places, ALL)
    spans = sorted(
        (at, at + int(places.columns[f"{m}_size"][n])) for n, members in enumerate(starts) for m, at in members.items()
    )
    assert all(end <= start for (_, end), (start, _) in zip(spans, spans[1:], strict=False))
    assert spans[-1][1] <= size


def test_no_read_holds_more_members_than_a_message_tells_of(manifest, monkeypatch):
    monkeypatch.setattr(reading, "MOST_MEMBERS", 4)
    places = Places.of(DataSet.of(manifest), range(60))
    planned = plan_reads(places, ALL)
    assert planned.count.max() == 4
    assert members_read(places, planned) == members_stored(places, ALL)
