"""Codecs by config and by folder: `config.json` beside `model.safetensors`.

A folder's identity is the hash of both files; shards remember it, so that shards of another codec are refused.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save

from model.codec_interface import Posterior, VideoCodec
from model.codec_patch import PatchCodec, PatchCodecConfig
from model.codec_wan import WanCodec, WanCodecConfig

__all__ = [
    "CODEC_FILES",
    "CodecConfig",
    "Posterior",
    "VideoCodec",
    "build_codec",
    "codec_identity",
    "load_codec",
    "save_codec",
]

CODEC_FILES = CONFIG, WEIGHTS = "config.json", "model.safetensors"
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class CodecConfig:
    """Exactly one of the two codecs."""

    patch: PatchCodecConfig | None = None
    wan: WanCodecConfig | None = None

    def __post_init__(self) -> None:
        if (self.patch is None) == (self.wan is None):
            given = "neither" if self.patch is None else "both"
            raise ValueError(f"codec: {given} of `patch` and `wan` given; give one of them")

    @property
    def strides(self) -> tuple[int, int, int]:
        chosen = self.patch or self.wan
        assert chosen is not None
        return chosen.strides


def build_codec(config: CodecConfig) -> VideoCodec:
    """A codec with fresh weights, drawn from torch's global generator."""
    if config.patch is not None:
        return PatchCodec(config.patch)
    assert config.wan is not None
    return WanCodec(config.wan)


def config_of(codec: VideoCodec) -> CodecConfig:
    """The config that builds this codec."""
    match codec:
        case PatchCodec():
            return CodecConfig(patch=codec.config)
        case WanCodec():
            return CodecConfig(wan=codec.config)
    raise ValueError(f"{type(codec).__name__} is not a codec that can be saved")


def save_codec(codec: VideoCodec, folder: str | Path) -> None:
    """Write weights, then the config that names their hash: a torn pair is refused by `load_codec`.

    The folder may hold other files. OSError where the disk is full; what stood before is then intact.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in codec.state_dict().items()}
    scratch = {name: path / f".{name}.tmp" for name in (WEIGHTS, CONFIG)}
    try:
        # Not `save_file`, whose files nobody else may read.
        scratch[WEIGHTS].write_bytes(save(tensors))
        described = {"format": FORMAT, "weights_sha256": _sha256(scratch[WEIGHTS]), **asdict(config_of(codec))}
        scratch[CONFIG].write_text(json.dumps(described, indent=1), encoding="utf-8")
        for file in scratch.values():
            _sync(file)
    except OSError as error:
        for file in scratch.values():
            file.unlink(missing_ok=True)
        raise OSError(f"codec folder {path} was not written ({error}): free space and start again") from error
    for name, file in scratch.items():
        os.replace(file, path / name)


def load_codec(folder: str | Path) -> VideoCodec:
    """A saved codec on the CPU, in evaluation mode and without gradients.

    Raises:
        ValueError: not a codec folder, or its files do not belong together.
    """
    path = Path(folder)
    config, weights_sha256 = _read_config(path)
    if _sha256(path / WEIGHTS) != weights_sha256:
        raise ValueError(f"{path / WEIGHTS} is not the file {CONFIG} names (sha256): train or copy the codec again")
    codec = build_codec(config)
    codec.load_state_dict(load_file(path / WEIGHTS), assign=True)
    return codec.eval().requires_grad_(False)


def codec_identity(folder: str | Path) -> str:
    """Hash of a codec's config and weights, 16 hexadecimal digits."""
    path = Path(folder)
    _read_config(path)
    return hashlib.sha256((_sha256(path / CONFIG) + _sha256(path / WEIGHTS)).encode()).hexdigest()[:16]


def _read_config(path: Path) -> tuple[CodecConfig, str]:
    """What `config.json` says: the codec, and the hash of its weights."""
    missing = [name for name in (CONFIG, WEIGHTS) if not (path / name).is_file()]
    if missing:
        raise ValueError(f"{path} is not a codec folder ({missing[0]} is missing): make one with trainer.train_vae")
    try:
        plain = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        if plain["format"] != FORMAT:
            raise ValueError(f"format {plain['format']} is not {FORMAT}, the one this version reads")
        patch, wan = _filled(PatchCodecConfig, plain["patch"]), _filled(WanCodecConfig, plain["wan"])
        return CodecConfig(patch=patch, wan=wan), str(plain["weights_sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path / CONFIG} does not describe a codec ({error}): train or copy it again") from error


def _filled(kind: type[Any], values: dict[str, Any] | None) -> Any:
    """A config dataclass from JSON, whose lists are our tuples; unknown keys raise TypeError."""
    if values is None:
        return None
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
