"""A tiny DiT, packs of unequal content, and what plain torch on one process makes of them."""

import hashlib
import json
from dataclasses import dataclass
from functools import cache, wraps
from math import prod
from pathlib import Path

import torch
from safetensors.torch import load_file

from model.dit import DiTConfig, VideoDiT
from model.packed import PackedInputs, patch_positions

CONFIG = DiTConfig(
    num_blocks=4, num_heads=4, head_dim=8, ffn_dim=48, text_dim=12, in_channels=3, out_channels=3, time_freq_dim=16
)
TOKENS = 24
GRIDS = [  # of the samples of a pack; what is left of it is padding
    [(1, 2, 4), (2, 2, 2), (1, 2, 2)],
    [(3, 2, 4)],
    [(1, 1, 2), (2, 2, 4), (1, 2, 2)],
    [(2, 2, 2), (2, 2, 2), (2, 2, 2)],
    [(1, 1, 1)],
]
STEPS, MORE_STEPS, LR, CLIP, EMA = 10, 3, 3e-3, 0.05, 0.9
ADAM = {"beta1": 0.9, "beta2": 0.95, "eps": 1e-6, "weight_decay": 0.1, "clip_norm": CLIP}
PACKS_PER_STEP = 4


@dataclass(frozen=True)
class Pack:
    inputs: PackedInputs
    target_LP: torch.Tensor
    weight_L: torch.Tensor


def make_pack(number):
    """Pack `number`: images and clips, a row per frame, clean conditions, uneven weights, padding without loss."""
    draw = torch.Generator().manual_seed(1000 + number)
    grids = list(GRIDS[number % len(GRIDS)])
    padding = TOKENS - sum(map(prod, grids))
    rows, positions, times, conditions = [], [], [], []
    for t, h, w in grids:
        rows.append(torch.arange(t).repeat_interleave(h * w) + len(times))
        positions.append(patch_positions((t, h, w)))
        is_condition = [t > 1 and frame == 0 for frame in range(t)]
        times += [0.02 if c else float(torch.rand((), generator=draw)) for c in is_condition]
        conditions += is_condition
    lengths = [prod(grid) for grid in grids]
    if padding:
        rows.append(torch.full((padding,), len(times)))
        positions.append(torch.zeros(padding, 3, dtype=torch.int64))
        times.append(0.0)
        conditions.append(False)
        lengths.append(padding)
    row_L = torch.cat(rows)
    text_lengths = [1 + int(torch.randint(0, 5, (), generator=draw)) for _ in lengths]
    patch_LP = torch.randn(TOKENS, CONFIG.patch_values_in, generator=draw, dtype=torch.float64)
    text_KE = torch.randn(sum(text_lengths), CONFIG.text_dim, generator=draw, dtype=torch.float64)
    weight_L = torch.rand(TOKENS, generator=draw, dtype=torch.float64) + 0.1
    weight_L[torch.tensor(conditions)[row_L]] = 0
    if padding:
        patch_LP[-padding:], text_KE[-1], weight_L[-padding:], text_lengths[-1] = 0, 0, 0, text_lengths[-1]
    inputs = PackedInputs(
        patch_LP=patch_LP,
        position_L3=torch.cat(positions),
        row_L=row_L,
        segment_lengths=tuple(lengths),
        time_R=torch.tensor(times, dtype=torch.float64),
        is_condition_R=torch.tensor(conditions),
        text_KE=text_KE,
        text_lengths=tuple(text_lengths),
    )
    target_LP = torch.randn(TOKENS, CONFIG.patch_values_out, generator=draw, dtype=torch.float64)
    return Pack(inputs, target_LP, weight_L)


def step_packs(step, count=PACKS_PER_STEP):
    return [make_pack(step * count + i) for i in range(count)]


def random_value(name, shape):
    """A logical parameter with nothing at zero, so that every path carries gradient."""
    draw = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big"))
    value = torch.randn(shape, generator=draw, dtype=torch.float64) * 0.2
    return value + 1 if name.endswith("norm.weight") else value


def dense_model(dtype):
    model = VideoDiT(CONFIG).to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(random_value(name, parameter.shape))
    return model


def dense_loss(model, packs, dtype):
    """Sum of weighted squared errors (mean over a patch) over the sum of weights, in so many words."""
    total = 0
    for pack in packs:
        error_L = ((model(pack.inputs.to("cpu", dtype)) - pack.target_LP.to(dtype)) ** 2).mean(-1)
        total = total + (error_L * pack.weight_L.to(dtype)).sum()
    return total / sum(pack.weight_L.sum() for pack in packs).to(dtype)


def on_one_thread(function):
    """Many small operations: more threads only wait for one another."""

    @wraps(function)
    def guarded(*args):
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return function(*args)
        finally:
            torch.set_num_threads(threads)

    return guarded


@cache
@on_one_thread
def reference_gradients(count):
    """Loss and every gradient by name over `count` packs, in float64."""
    model = dense_model(torch.float64)
    loss = dense_loss(model, step_packs(0, count=count), torch.float64)
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters()}


@cache
@on_one_thread
def reference_training(steps, dtype=torch.float32):
    """Losses, norms, weights and averaged weights of a plain AdamW loop, clipping active at every step."""
    model = dense_model(dtype)
    named = dict(model.named_parameters())
    matrices = [p for n, p in named.items() if n.endswith(".weight") and p.ndim == 2]
    others = [p for n, p in named.items() if not (n.endswith(".weight") and p.ndim == 2)]
    groups = [{"params": matrices, "weight_decay": ADAM["weight_decay"]}, {"params": others, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(
        groups, lr=LR, betas=(ADAM["beta1"], ADAM["beta2"]), eps=ADAM["eps"], fused=False, foreach=False
    )
    ema = {name: p.detach().clone() for name, p in named.items()}
    losses, norms = [], []
    for step in range(steps):
        adamw.zero_grad()
        loss = dense_loss(model, step_packs(step), dtype)
        loss.backward()
        norm = sum(float(p.grad.double().square().sum()) for p in named.values()) ** 0.5
        assert norm > 1.5 * CLIP, "the clip must act"
        for p in named.values():
            p.grad.mul_(CLIP / norm)
        adamw.step()
        for name, p in named.items():
            ema[name] = EMA * ema[name] + (1 - EMA) * p.detach()
        losses.append(loss.item())
        norms.append(norm)
    weights = {name: p.detach().clone() for name, p in named.items()}
    with torch.no_grad():
        inputs = prediction_inputs()
        predictions = [model(pack.to("cpu", dtype)) for pack in inputs]
        for name, p in named.items():
            p.copy_(ema[name])
        averaged = [model(pack.to("cpu", dtype)) for pack in inputs]
    return {
        "losses": losses,
        "norms": norms,
        "master": weights,
        "ema": ema,
        "predictions": torch.stack(predictions),
        "averaged_predictions": torch.stack(averaged),
    }


def prediction_inputs():
    return [make_pack(100 + i).inputs for i in range(3)]


def relative(value, reference):
    """Relative Frobenius error; absolute where the reference is zero."""
    scale = float(reference.double().norm())
    return float((value.double() - reference.double()).norm()) / (scale or 1.0)


def read_ranks(folder):
    """[(tensors, notes) of each rank] that a case wrote."""
    paths = sorted(Path(folder).glob("rank*.json"))
    return [(load_file(path.with_suffix(".safetensors")), json.loads(path.read_text())) for path in paths]


def assemble(folder):
    """{kind: {name: logical tensor}} from the pieces all ranks wrote; every element must come exactly once."""
    whole, seen = {}, {}
    for tensors, notes in read_ranks(folder):
        for piece in notes["pieces"]:
            kind, name = piece["kind"], piece["name"]
            if name not in whole.setdefault(kind, {}):
                whole[kind][name] = torch.full(piece["global_shape"], float("nan"))
                seen[kind, name] = torch.zeros(piece["global_shape"], dtype=torch.int32)
            part = tensors[f"{kind}/{name}"]
            place = tuple(slice(o, o + n) for o, n in zip(piece["offset"], part.shape, strict=True))
            whole[kind][name][place] = part
            seen[kind, name][place] += 1
    assert all(bool((count == 1).all()) for count in seen.values()), "an element was written twice or not at all"
    return whole
