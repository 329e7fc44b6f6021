"""Latent shards as others make them: plain tars of any members, written by `tarfile`."""

import io
import json
import tarfile

import torch
from safetensors.torch import save


def members(number=0, *, grid=(3, 4, 6), channels=4, text_dim=8, dtype=torch.float16, **meta):
    """Extension -> bytes of a good sample."""
    generator = torch.Generator().manual_seed(number)
    latent = torch.randn(channels, *grid, generator=generator).to(dtype)
    text = torch.randn(3 + number % 4, text_dim, generator=generator).to(dtype)
    plain = {"captions": {"short": f"clip {number}"}, "source": f"film{number}", "fps": 8.0, **meta}
    return {
        "json": json.dumps({name: value for name, value in plain.items() if value is not None}).encode(),
        "latent.safetensors": save({"latent": latent}),
        "text.safetensors": save({"short": text}),
    }


def write_tar(path, samples):
    """A tar of `key -> (extension -> bytes)`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, parts in samples.items():
            for extension, data in parts.items():
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def write_foreign(folder, count=10, *, per_shard=4, text_dim=8, **options):
    """A folder of good shards with a null text."""
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, count, per_shard):
        numbers = range(start, min(start + per_shard, count))
        samples = {f"clip{n:04d}": members(n, text_dim=text_dim, **options) for n in numbers}
        write_tar(folder / f"part{start // per_shard}.tar", samples)
    (folder / "null_text.safetensors").write_bytes(save({"text": torch.zeros(1, text_dim)}))
    return folder
