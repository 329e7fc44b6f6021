"""Weights and configs of diffusers' `WanTransformer3DModel` (text to video), in both directions."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from model.dit import DiTConfig, VideoDiT

CONFIG_KEYS = {
    "num_layers": "num_blocks",
    "num_attention_heads": "num_heads",
    "attention_head_dim": "head_dim",
    "ffn_dim": "ffn_dim",
    "text_dim": "text_dim",
    "in_channels": "in_channels",
    "out_channels": "out_channels",
    "patch_size": "patch_size",
    "freq_dim": "time_freq_dim",
    "eps": "eps",
}
"""Key of a diffusers config -> field of `DiTConfig`."""

FIXED_CONFIG = {
    "qk_norm": "rms_norm_across_heads",
    "cross_attn_norm": True,
    "image_dim": None,
    "added_kv_proj_dim": None,
    "pos_embed_seq_len": None,
}
"""What a diffusers config must say for the model to be one of ours."""

OUTER_NAMES = {
    "patch_embedding": "patch_embedding",
    "conditioning.time_in": "condition_embedder.time_embedder.linear_1",
    "conditioning.time_out": "condition_embedder.time_embedder.linear_2",
    "conditioning.modulation": "condition_embedder.time_proj",
    "conditioning.text_in": "condition_embedder.text_embedder.linear_1",
    "conditioning.text_out": "condition_embedder.text_embedder.linear_2",
    "head.projection": "proj_out",
}
"""Module of ours -> theirs; all have a weight and a bias."""

BLOCK_NAMES = {
    f"{ours}.{part}": f"{theirs}.{their_part}"
    for ours, theirs in (("self_attention", "attn1"), ("cross_attention", "attn2"))
    for part, their_part in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("output", "to_out.0"))
} | {"cross_norm": "norm2", "mlp_in": "ffn.net.0.proj", "mlp_out": "ffn.net.2"}
"""Module of a block of ours -> theirs; all have a weight and a bias."""

BLOCK_NORMS = {
    f"{ours}.{part}_norm.weight": f"{theirs}.norm_{part[0]}.weight"
    for ours, theirs in (("self_attention", "attn1"), ("cross_attention", "attn2"))
    for part in ("query", "key")
}


def parameter_names(config: DiTConfig) -> Iterator[tuple[str, str]]:
    """Pairs of names (ours, theirs) of all parameters but `conditioning.condition_embedding`, which Wan lacks."""
    for ours, theirs in OUTER_NAMES.items():
        yield from ((f"{ours}.{leaf}", f"{theirs}.{leaf}") for leaf in ("weight", "bias"))
    yield "head.scale_shift_table", "scale_shift_table"
    for i in range(config.num_blocks):
        for ours, theirs in BLOCK_NAMES.items():
            yield from ((f"blocks.{i}.{ours}.{leaf}", f"blocks.{i}.{theirs}.{leaf}") for leaf in ("weight", "bias"))
        for ours, theirs in (BLOCK_NORMS | {"scale_shift_table": "scale_shift_table"}).items():
            yield f"blocks.{i}.{ours}", f"blocks.{i}.{theirs}"


def config_from_wan(wan: Mapping[str, Any]) -> DiTConfig:
    """Our config of a diffusers `config.json`. Raises ValueError for a Wan that is not a text-to-video DiT."""
    for key, value in FIXED_CONFIG.items():
        if wan.get(key, value) != value:
            raise ValueError(
                f"The Wan config has {key}={wan[key]!r}; only text-to-video models with {key}={value!r} can be loaded."
            )
    missing = sorted(CONFIG_KEYS.keys() - wan.keys())
    if missing:
        raise ValueError(f"The Wan config lacks {', '.join(missing)}; give the config.json of a transformer folder.")
    fields = {ours: wan[theirs] for theirs, ours in CONFIG_KEYS.items()}
    # diffusers lets out_channels be null for "the same as in_channels".
    fields["out_channels"] = fields["out_channels"] or fields["in_channels"]
    return DiTConfig(**(fields | {"patch_size": tuple(fields["patch_size"])}))


def config_to_wan(config: DiTConfig) -> dict[str, Any]:
    """Arguments of diffusers' `WanTransformer3DModel`."""
    return {theirs: getattr(config, ours) for theirs, ours in CONFIG_KEYS.items()} | FIXED_CONFIG


def from_wan(wan: Mapping[str, Tensor], config: DiTConfig) -> dict[str, Tensor]:
    """Our state dict of a diffusers one; views where possible. Raises ValueError where names or shapes differ."""
    names = dict(parameter_names(config))
    check_names(wan, set(names.values()), "The Wan state dict")
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in VideoDiT(config).state_dict().items()}
    state = {}
    for ours, theirs in names.items():
        tensor = wan[theirs]
        if ours == "patch_embedding.weight":
            tensor = rearrange(tensor, "d c pt ph pw -> d (pt ph pw c)")
        elif ours.endswith("scale_shift_table"):
            tensor = tensor.squeeze(0)
        elif ours == "head.projection.weight" and config.width_factor != 1:
            tensor = tensor * config.width_factor
        if tensor.shape != shapes[ours]:
            raise ValueError(
                f"{theirs} of the Wan state dict is {tuple(tensor.shape)} and the config asks for "
                f"{tuple(shapes[ours])}; give the config that belongs to these weights."
            )
        state[ours] = tensor
    state["conditioning.condition_embedding"] = state["conditioning.time_out.bias"].new_zeros(config.dim)
    return state


def to_wan(
    state: Mapping[str, Tensor], config: DiTConfig, *, drop_condition_embedding: bool = False
) -> dict[str, Tensor]:
    """Diffusers' state dict of ours; views where possible.

    Raises ValueError for a trained condition embedding, which Wan has no place for, unless told to drop it: what
    is then lost is the difference between a clean frame and a condition with slight noise.
    """
    names = dict(parameter_names(config))
    check_names(state, {*names, "conditioning.condition_embedding"}, "The state dict")
    largest = state["conditioning.condition_embedding"].abs().max().item()
    if largest and not drop_condition_embedding:
        raise ValueError(
            f"conditioning.condition_embedding reaches {largest:.3g} and Wan has no such vector; "
            f"pass drop_condition_embedding=True to export without it."
        )
    pt, ph, pw = config.patch_size
    wan = {}
    for ours, theirs in names.items():
        tensor = state[ours]
        if ours == "patch_embedding.weight":
            tensor = rearrange(tensor, "d (pt ph pw c) -> d c pt ph pw", pt=pt, ph=ph, pw=pw)
        elif ours.endswith("scale_shift_table"):
            tensor = tensor[None]
        elif ours == "head.projection.weight" and config.width_factor != 1:
            tensor = tensor / config.width_factor  # Wan knows no multiplier (`model.mup`)
        wan[theirs] = tensor
    return wan


def check_names(state: Mapping[str, Tensor], expected: set[str], what: str) -> None:
    """Raise ValueError unless `state` holds exactly the `expected` names."""
    missing, extra = sorted(expected - state.keys()), sorted(state.keys() - expected)
    if missing:
        raise ValueError(f"{what} lacks {missing[0]} ({len(missing)} in all); give the config of these weights.")
    if extra:
        raise ValueError(f"{what} has an unknown {extra[0]} ({len(extra)} in all); give the config of these weights.")
