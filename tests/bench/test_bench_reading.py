"""The reading part of the data benchmark, with our loader alone: it hands out what was written, and prints its rows."""

import re
from dataclasses import replace

import pytest

from bench import reading, shelf
from bench.reader import Read, Tessera

TINY = replace(shelf.DEMO, title="tiny", samples=40, samples_per_shard=8)


def test_sources_hand_out_every_sample_and_the_values_that_are_counted(tmp_path):
    manifest = shelf.write(TINY, tmp_path / "shards")
    source, seen = Tessera(workers=1), {}
    for batch in source.open(str(tmp_path), source.state_at(str(tmp_path), 3)):
        seen |= {key: latent.numel() + text.numel() for key, latent, text in batch}
        if len(seen) == TINY.samples:
            break
    source.close()
    assert set(seen) == set(manifest.keys())
    assert sum(seen.values()) == shelf.count_values(manifest)
    pieces = Read().open(str(tmp_path), None)
    read = sum(next(pieces)[0][1].numel() for _ in manifest.shards)
    assert read == pytest.approx(shelf.count_values(manifest), abs=len(manifest.shards))


def test_reading_prints_rates_starts_and_memory(monkeypatch, capfd):
    monkeypatch.setattr(reading, "WAN", replace(TINY, title="first"))
    monkeypatch.setattr(reading, "DEMO", replace(TINY, title="second"))
    effort = reading.Effort(rounds=2, seconds=0.05, starts=2, steps=20)
    reading.print_reading([reading.RAW, "Tessera, 1 worker", "Tessera as stored, 1 worker"], effort)
    printed = capfd.readouterr().out
    assert re.findall(r"^  (\w+) latents: 40 samples", printed, flags=re.MULTILINE) == ["first", "second"]
    assert (
        len(re.findall(r"^    Tessera, 1 worker +\d+ samples/s +[\d.]+ GB/s of shards$", printed, flags=re.MULTILINE))
        == 2
    )
    pattern = r"^    read\(\) .* GB/s of shards +Tessera, 1 worker / this [\d.]+ \("
    assert len(re.findall(pattern, printed, flags=re.MULTILINE)) == 2
    assert len(re.findall(r"^    Tessera as stored, 1 worker / read\(\) +[\d.]+ \(", printed, flags=re.MULTILINE)) == 2
    assert re.search(r"^    Tessera, 1 worker +[\d.]+ ms / +[\d.]+ ms +[\d.]+ \(", printed, flags=re.MULTILINE)
    assert len(re.findall(r"steps +[\d.]+ MiB", printed)) == 10


def test_every_round_but_the_first_is_counted_for_every_contender(tmp_path):
    class Slow:
        """A contender whose nth turn serves n values in a second."""

        def __init__(self, name):
            self.name, self.turn = name, 0

        def ask(self, do, **values):
            self.turn += do == "pull"
            return {"values": self.turn, "seconds": 1.0} if do == "pull" else {}

    rates = reading.turns([Slow("A"), Slow("B"), Slow(reading.RAW)], tmp_path, reading.Effort(rounds=3))
    assert rates == {name: [2.0, 3.0, 4.0] for name in ("A", "B", reading.RAW)}


def test_the_number_of_workers_that_suits_a_library_best_is_compared():
    rates = {
        "read()": [9.0, 9.0],
        "A, 1 worker": [1.0, 2.0],
        "A, 2 workers": [2.0, 3.0],
        "A as stored, 1 worker": [8.0],
    }
    assert reading.better(rates, "A") == ("A, 2 workers", [2.0, 3.0])
    assert reading.better(rates, "B") is None


def test_loaders_that_disagree_are_told_and_a_missing_environment_too(monkeypatch, tmp_path):
    with pytest.raises(SystemExit, match="B hands out another clip1"):
        reading.require_same({"A": {"clip1": [4.0, 0.5]}, "B": {"clip1": [4.0, 0.25]}})
    monkeypatch.setattr(reading, "PEERS", tmp_path / "python")
    monkeypatch.setitem(reading.CONTENDERS, "peer", [str(tmp_path / "python")])
    with pytest.raises(SystemExit, match=r"bash bench/peers\.sh"):
        reading.print_reading(["peer"], reading.Effort())
