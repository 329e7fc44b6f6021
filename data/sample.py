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
DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
_INF_BITS = {torch.float32: 0x7F800000, torch.float16: 0x7C00, torch.bfloat16: 0x7F80}
_INTEGERS = {2: torch.int16, 4: torch.int32}


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
    def is_finite(self) -> bool:
        """Whether latent and text have no NaN or Inf. Looking takes as long as reading: who writes sees to it."""
        return all(is_finite(tensor) for tensor in (self.latent_CTHW, *self.text.values()) if tensor is not None)

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (self.latent_CTHW, *self.text.values()) if tensor is not None)


class Memory:
    """Bytes that members of samples lie in, and tensors that view them."""

    def __init__(self, tensor: Tensor) -> None:
        """uint8, with all of its storage."""
        assert tensor.storage_offset() == 0
        self.tensor, self.bytes = tensor, memoryview(tensor.numpy().data)
        self._typed: dict[torch.dtype, Tensor] = {}

    def view(self, dtype: torch.dtype, shape: tuple[int, ...], strides: tuple[int, ...], start: int) -> Tensor:
        """The tensor whose first byte is at `start`; a copy only where no tensor of this type may lie there."""
        offset, odd = divmod(start, dtype.itemsize)
        if odd:
            return self.tensor[start : start + math.prod(shape) * dtype.itemsize].clone().view(dtype).view(shape)
        if dtype not in self._typed:
            whole = len(self.tensor) // dtype.itemsize * dtype.itemsize
            self._typed[dtype] = self.tensor[:whole].view(dtype)
        return self._typed[dtype].as_strided(shape, strides, offset)


def build_sample(places: Places, number: int, memory: Memory, starts: dict[str, int]) -> Sample:
    """The sample at a number of `places`, whose wanted members begin at `starts` in `memory`.

    ValueError names shard and key.
    """
    values = places.values
    shape = places.latent_shape(number)
    latent_CTHW = None
    try:
        if "latent" in starts:
            latent_CTHW = tensors_in(memory, starts["latent"], values["latent_size"][number])["latent"]
        text = tensors_in(memory, starts["text"], values["text_size"][number])
        start = starts["json"]
        captions = json.loads(str(memory.bytes[start : start + values["json_size"][number]], "utf-8"))["captions"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{places.where(number)} cannot be read ({error!r}): encode the clips again") from error
    if latent_CTHW is not None and tuple(latent_CTHW.shape) != shape:
        raise ValueError(
            f"{places.where(number)} has shape {tuple(latent_CTHW.shape)}, the manifest says {shape}: encode again"
        )
    return Sample(
        key=values["key"][number],
        index=int(places.rows[number]),
        latent_shape=shape,
        latent_CTHW=latent_CTHW,
        text=text,
        captions=captions,
        source=values["source"][number],
        video_tokens=values["video_tokens"][number],
        fps=values["fps"][number],
        bucket=places.bucket(number),
    )


def wanted_members(*, latents: bool) -> tuple[str, ...]:
    """Members of a sample that are read."""
    return tuple(member for member in MEMBERS if latents or member != "latent")


def tensors_in(memory: Memory, start: int, size: int) -> dict[str, Tensor]:
    """Tensors of a safetensors file that lies in `memory`. ValueError where it is none."""
    first = start + _LENGTH_BYTES
    length = int.from_bytes(memory.bytes[start:first], "little")
    if not 0 < length <= min(_LONGEST_HEADER, size - _LENGTH_BYTES):
        raise ValueError(f"no safetensors: header of {length} bytes")
    header = bytes(memory.bytes[first : first + length])
    first += length
    entries = _parse(header, size - _LENGTH_BYTES - length)
    return {name: memory.view(dtype, shape, strides, first + begin) for name, dtype, shape, strides, begin in entries}


@lru_cache(maxsize=4096)
def _parse(header: bytes, size: int) -> tuple[tuple[str, torch.dtype, tuple[int, ...], tuple[int, ...], int], ...]:
    """Name, type, shape, strides and first byte of each tensor, all within `size` bytes."""
    entries = []
    for name, entry in json.loads(header).items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in DTYPES:
            raise ValueError(f"{name} is {entry['dtype']}, not floating point")
        dtype, shape, (begin, end) = DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
        is_inside = 0 <= begin <= end <= size and min(shape, default=1) >= 0
        if not is_inside or math.prod(shape) * dtype.itemsize != end - begin:
            raise ValueError(f"{name} of shape {shape} is not in bytes {begin} to {end} of {size}")
        strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
        entries.append((name, dtype, shape, strides, begin))
    return tuple(entries)


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or Inf; many times as fast as `torch.isfinite`, without memory of its own."""
    if tensor.dtype not in _INF_BITS or not tensor.numel():
        return bool(torch.isfinite(tensor).all())
    bits = tensor.view(_INTEGERS[tensor.dtype.itemsize]).numpy()
    inf = _INF_BITS[tensor.dtype]
    # Positive values are in order of their bits, and Inf and NaN lie above them; so are negative ones, by themselves.
    negative_inf = inf | 1 << (8 * tensor.dtype.itemsize - 1)
    return bool(bits.max() < inf) and bool(bits.view(f"u{tensor.dtype.itemsize}").max() < negative_inf)
