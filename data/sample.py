"""A stored sample, made of the checked bytes of its members."""

import json
import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from data.places import Places
from data.rows import MEMBERS

_LENGTH_BYTES = 8
_LONGEST_HEADER = 1 << 20
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One stored sample. May be shared between steps: never write into its tensors.

    Tensors have the type they are stored in: convert where they are computed with. They view the memory that the loader
    read into, and keep it: nothing is read into it as long as a tensor, or a view of one, lives.
    """

    key: str
    index: int
    """Row of the data set."""
    latent_shape: tuple[int, int, int, int]
    """(C, T, H, W), from the manifest."""
    latent_CTHW: Tensor | None
    """Normalised; None where latents are not read."""
    text: dict[str, Tensor]
    """Caption kind -> embedding `[n, E]`, valid tokens only."""
    captions: dict[str, str]
    source: str
    video_tokens: int
    fps: float
    """Of the frames that were encoded."""
    bucket: str

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (self.latent_CTHW, *self.text.values()) if tensor is not None)


def build_sample(places: Places, number: int, memory: Tensor, starts: dict[str, int]) -> Sample:
    """The sample at a number of `places`, whose wanted members begin at `starts` in `memory` (uint8).

    ValueError names shard and key.
    """
    columns = places.columns
    shape = places.latent_shape(number)
    latent_CTHW = None
    try:
        parts = {member: (start, int(columns[f"{member}_size"][number])) for member, start in starts.items()}
        if "latent" in starts:
            latent_CTHW = tensors_in(memory, *parts["latent"])["latent"]
        text = tensors_in(memory, *parts["text"])
        start, size = parts["json"]
        captions = json.loads(memory[start : start + size].numpy().tobytes())["captions"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{places.where(number)} cannot be read ({error!r}): encode the clips again") from error
    if latent_CTHW is not None:
        _check_latent(latent_CTHW, shape, places, number)
    return Sample(
        key=columns["key"][number],
        index=int(places.rows[number]),
        latent_shape=shape,
        latent_CTHW=latent_CTHW,
        text=text,
        captions=captions,
        source=columns["source"][number],
        video_tokens=int(columns["video_tokens"][number]),
        fps=float(columns["fps"][number]),
        bucket=places.bucket(number),
    )


def wanted_members(*, latents: bool) -> tuple[str, ...]:
    """Members of a sample that are read."""
    return tuple(member for member in MEMBERS if latents or member != "latent")


def tensors_in(memory: Tensor, start: int, size: int) -> dict[str, Tensor]:
    """Tensors of a safetensors file that lies in `memory` (uint8). ValueError where it is none."""
    data = memory[start : start + size]
    length = int.from_bytes(data[:_LENGTH_BYTES].numpy().tobytes(), "little")
    first = _LENGTH_BYTES + length
    if not 0 < length <= min(_LONGEST_HEADER, size - _LENGTH_BYTES):
        raise ValueError(f"no safetensors: header of {length} bytes")
    out = {}
    for name, dtype, shape, begin, end in _parse(data[_LENGTH_BYTES:first].numpy().tobytes(), size - first):
        part = data[first + begin : first + end]
        if (start + first + begin) % dtype.itemsize:
            part = part.clone()  # an address that no tensor of this type may have
        out[name] = part.view(dtype).view(shape)
    return out


@lru_cache(maxsize=4096)
def _parse(header: bytes, size: int) -> tuple[tuple[str, torch.dtype, tuple[int, ...], int, int], ...]:
    """Name, type, shape, first byte and end of each tensor, all within `size` bytes."""
    entries = []
    for name, entry in json.loads(header).items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in _DTYPES:
            raise ValueError(f"{name} is {entry['dtype']}, not floating point")
        dtype, shape, (begin, end) = _DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
        if (
            not 0 <= begin <= end <= size
            or math.prod(shape) * dtype.itemsize != end - begin
            or min(shape, default=1) < 0
        ):
            raise ValueError(f"{name} of shape {shape} is not in bytes {begin} to {end} of {size}")
        entries.append((name, dtype, shape, begin, end))
    return tuple(entries)


def _check_latent(latent_CTHW: Tensor, shape: tuple[int, ...], places: Places, number: int) -> None:
    if tuple(latent_CTHW.shape) != shape:
        raise ValueError(
            f"{places.where(number)} has shape {tuple(latent_CTHW.shape)}, the manifest says {shape}: encode again"
        )
    # A sum over all is cheap, and finite where every value is, unless it overflows.
    if not math.isfinite(float(latent_CTHW.sum(dtype=torch.float32))) and not bool(torch.isfinite(latent_CTHW).all()):
        raise ValueError(f"{places.where(number)} has NaN or Inf in its latent: encode the clips again")
