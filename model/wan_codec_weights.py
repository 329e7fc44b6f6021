"""The `wan` codec from and to a diffusers `AutoencoderKLWan` folder.

Names of weights are the same on both sides; what differs is the config, and that the latent mean and scale are
config there and buffers here.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.codec_wan import WanCodec, WanCodecConfig

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
_STATISTICS = ("latent_mean_C", "latent_scale_C")


def from_diffusers(config: dict[str, Any], state: dict[str, Tensor]) -> WanCodec:
    """Our codec with the weights of an `AutoencoderKLWan` of that config.

    Raises:
        ValueError: a setting we have no counterpart for, or weights that do not fit the config.
    """
    ours = _our_config(config)
    codec = WanCodec(ours).to(next(iter(state.values())).dtype)
    expected = {name: tensor.shape for name, tensor in codec.state_dict().items() if name not in _STATISTICS}
    wrong = [name for name, shape in expected.items() if name not in state or state[name].shape != shape]
    wrong += sorted(state.keys() - expected.keys())
    if wrong:
        raise ValueError(
            f"{wrong[0]} of the AutoencoderKLWan weights does not fit its config: take both from one folder"
        )
    codec.load_state_dict(state, strict=False)
    codec.set_latent_statistics(
        mean_C=torch.tensor(config["latents_mean"], dtype=torch.float64),
        scale_C=torch.tensor(config["latents_std"], dtype=torch.float64),
    )
    return codec


def to_diffusers(codec: WanCodec) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and state dict that build the same codec as an `AutoencoderKLWan`."""
    ours = codec.config
    pixels = 3 * ours.pixel_patch**2
    config = {
        "_class_name": "AutoencoderKLWan",
        "base_dim": ours.encoder_width,
        "decoder_base_dim": ours.decoder_width,
        "z_dim": ours.latent_channels,
        "dim_mult": list(ours.width_multiples),
        "num_res_blocks": ours.blocks_per_level,
        "attn_scales": [],
        "temperal_downsample": list(ours.time_downsample),
        "dropout": 0.0,
        "latents_mean": codec.latent_mean_C.tolist(),
        "latents_std": codec.latent_scale_C.tolist(),
        "is_residual": ours.residual,
        "in_channels": pixels,
        "out_channels": pixels,
        "patch_size": None if ours.pixel_patch == 1 else ours.pixel_patch,
        "scale_factor_temporal": ours.strides[0],
        "scale_factor_spatial": ours.strides[1],
    }
    state = {name: tensor.detach() for name, tensor in codec.state_dict().items() if name not in _STATISTICS}
    return config, state


def read_diffusers(folder: str | Path) -> WanCodec:
    """Load a folder that `AutoencoderKLWan.save_pretrained` wrote."""
    path = Path(folder)
    missing = [name for name in (CONFIG, WEIGHTS) if not (path / name).is_file()]
    if missing:
        raise ValueError(f"{path} is not a folder of diffusers' AutoencoderKLWan: {missing[0]} is missing")
    return from_diffusers(json.loads((path / CONFIG).read_text(encoding="utf-8")), load_file(path / WEIGHTS))


def write_diffusers(codec: WanCodec, folder: str | Path) -> None:
    """Write a folder for `AutoencoderKLWan.from_pretrained`; the config comes last, so a torn folder does not load."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    config, state = to_diffusers(codec)
    (path / CONFIG).unlink(missing_ok=True)
    save_file({name: tensor.cpu().contiguous() for name, tensor in state.items()}, path / WEIGHTS)
    scratch = path / f".{CONFIG}.tmp"
    scratch.write_text(json.dumps(config, indent=2), encoding="utf-8")
    os.replace(scratch, path / CONFIG)


def _our_config(theirs: dict[str, Any]) -> WanCodecConfig:
    if theirs.get("attn_scales"):
        raise ValueError(f"attn_scales={theirs['attn_scales']} of AutoencoderKLWan is not supported: only [] is")
    patch = theirs.get("patch_size") or 1
    pixels = (theirs.get("in_channels", 3), theirs.get("out_channels", 3))
    if pixels != (3 * patch**2, 3 * patch**2):
        raise ValueError(f"in_channels and out_channels {pixels} of AutoencoderKLWan are not RGB in {patch} x {patch}")
    return WanCodecConfig(
        latent_channels=theirs["z_dim"],
        encoder_width=theirs["base_dim"],
        decoder_width=theirs.get("decoder_base_dim") or theirs["base_dim"],
        width_multiples=tuple(theirs["dim_mult"]),
        blocks_per_level=theirs["num_res_blocks"],
        time_downsample=tuple(theirs["temperal_downsample"]),
        residual=theirs.get("is_residual", False),
        pixel_patch=patch,
    )
