"""The loaders that ours is compared with, each reading the same latents; runs in the interpreter of .venv-peers.

python -m bench.peers prepare FOLDER                     write FOLDER/mds and FOLDER/energon from FOLDER/shards
python -m bench.peers webdataset|streaming|energon N     serve (bench/source.py) with N workers
"""

import argparse
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
from torch.utils.data import DataLoader

from bench.source import Item, serve

BATCH = 8
SHUFFLED = 64
"""Samples in a shuffle buffer: few, since a sample may be large."""
REPEATS = 1000
"""Epochs that mosaicml-streaming takes for one, so that the ends of so small a set do not count."""


def decode(key: str, latent: bytes, text: bytes) -> Item:
    texts = safetensors.torch.load(text)
    return key, safetensors.torch.load(latent)["latent"].float(), next(iter(texts.values())).float()


def as_it_is(batch: list[Item]) -> list[Item]:
    return batch


def shards(folder: str) -> list[str]:
    return sorted(str(path) for path in Path(folder, "shards").rglob("*.tar"))


class Webdataset:
    """Plain streaming: shuffled shards, a shuffle buffer, batches made in the workers."""

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def open(self, folder: str, state: Any | None) -> Iterator[list[Item]]:
        import webdataset

        dataset = (
            webdataset.WebDataset(shards(folder), shardshuffle=1000, seed=0, empty_check=False)
            .repeat()
            .shuffle(SHUFFLED)
            .map(_decode_members)
            .batched(BATCH, collation_fn=as_it_is)
        )
        return iter(webdataset.WebLoader(dataset, batch_size=None, num_workers=self.workers))

    def state_at(self, folder: str, steps: int) -> None:
        return None

    def close(self) -> None:
        pass


def _decode_members(sample: dict[str, Any]) -> Item:
    return decode(sample["__key__"], sample["latent.safetensors"], sample["text.safetensors"])


class Streaming:
    """mosaicml-streaming over MDS shards of the same bytes."""

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def _loader(self, folder: str) -> Any:
        import streaming

        # Two processes may not name one folder: it is the key of what they share in memory.
        own = Path(folder, f"mds-{self.workers}")
        if not own.exists():
            own.symlink_to("mds")
        stream = streaming.Stream(local=str(own), repeat=REPEATS)
        dataset = streaming.StreamingDataset(streams=[stream], batch_size=BATCH, shuffle=True, num_canonical_nodes=1)
        return DataLoader(dataset, batch_size=BATCH, num_workers=self.workers, collate_fn=_decode_rows)

    def open(self, folder: str, state: Any | None) -> Iterator[list[Item]]:
        loader = self._loader(folder)
        if state is not None:
            loader.dataset.load_state_dict(state)
        return iter(loader)

    def state_at(self, folder: str, steps: int) -> Any:
        loader = self._loader(folder)
        next(iter(loader))
        return loader.dataset.state_dict(steps * BATCH, from_beginning=True)

    def close(self) -> None:
        pass


def _decode_rows(rows: list[dict[str, Any]]) -> list[Item]:
    return [decode(row["key"], row["latent"], row["text"]) for row in rows]


class Energon:
    """megatron-energon over the same tars, with its index."""

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def _loader(self, folder: str) -> Any:
        from megatron import energon

        config = energon.WorkerConfig(rank=0, world_size=1, num_workers=self.workers)
        dataset = energon.get_train_dataset(
            str(Path(folder, "energon")),
            worker_config=config,
            batch_size=BATCH,
            shuffle_buffer_size=SHUFFLED,
            max_samples_per_sequence=100,
            task_encoder=_energon_encoder(),
        )
        return energon.get_savable_loader(dataset, watchdog_timeout_seconds=None)

    def open(self, folder: str, state: Any | None) -> Iterator[list[Item]]:
        loader = self._loader(folder)
        if state is not None:
            loader.restore_state_rank(state)
        return iter(loader)

    def state_at(self, folder: str, steps: int) -> Any:
        loader = self._loader(folder)
        batches = iter(loader)
        for _ in range(steps // BATCH):  # as many samples as ours has steps: the state is as large, and it ends today
            next(batches)
        return loader.save_state_rank()

    def close(self) -> None:
        pass


def _energon_encoder() -> Any:
    from megatron import energon

    @energon.edataclass
    class Latent(energon.Sample):
        item: Any

    @energon.stateless
    def cook(sample: dict[str, Any]) -> Latent:
        item = decode(sample["__key__"], sample["latent.safetensors"], sample["text.safetensors"])
        return Latent(**energon.basic_sample_keys(sample), item=item)

    class Encoder(energon.DefaultTaskEncoder):
        cookers = (energon.Cooker(cook),)

        @energon.stateless
        def batch(self, samples: list[Latent]) -> list[Item]:
            return [sample.item for sample in samples]

        @energon.stateless
        def encode_batch(self, batch: list[Item]) -> list[Item]:
            return batch

    return Encoder()


def prepare(folder: Path) -> None:
    """Bring the shards into the forms that mosaicml-streaming and megatron-energon read."""
    import streaming

    columns = {"key": "str", "latent": "bytes", "text": "bytes"}
    links = folder / "energon"
    links.mkdir()
    with streaming.MDSWriter(out=str(folder / "mds"), columns=columns, size_limit=32 << 20) as writer:
        for number, path in enumerate(shards(str(folder))):
            os.symlink(path, links / f"shard-{number:06d}.tar")
            with tarfile.open(path) as tar:
                row: dict[str, Any] = {}
                for member in tar:
                    key, _, extension = member.name.partition(".")
                    file = tar.extractfile(member)
                    assert file is not None
                    row |= {"key": key, extension.partition(".")[0]: file.read()}
                    if len(row) == 4:  # key, json, latent, text
                        writer.write({name: row[name] for name in columns})
                        row = {}
    energon = Path(sys.executable).with_name("energon")
    settings = ["--non-interactive", "--no-progress", "--split-ratio", "1,0,0", "--sample-type", "CrudeWebdataset"]
    subprocess.run([energon, "prepare", *settings, "--num-workers", "1", links], check=True, stdin=subprocess.DEVNULL)


KINDS: dict[str, Callable[[int], Webdataset | Streaming | Energon]] = {
    "webdataset": Webdataset,
    "streaming": Streaming,
    "energon": Energon,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Loaders beside ours, for bench.data.")
    parser.add_argument("kind", choices=["prepare", *KINDS])
    parser.add_argument("value", help="the folder to prepare, or how many workers read")
    arguments = parser.parse_args()
    if arguments.kind == "prepare":
        prepare(Path(arguments.value))
    else:
        serve(KINDS[arguments.kind](int(arguments.value)))


if __name__ == "__main__":
    main()
