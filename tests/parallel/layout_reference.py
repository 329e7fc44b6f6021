"""The trial that layouts are put through here, and what plain torch in one process makes of it."""

import json
from dataclasses import replace
from functools import cache, wraps
from pathlib import Path

import torch
from safetensors.torch import load_file

from model.dit import DiTConfig
from parallel.optim import AdamWConfig
from parallel.reference import Trial, dense_model
from parallel.reference import reference_training as plain_training

CONFIG = DiTConfig(
    num_blocks=4, num_heads=4, head_dim=8, ffn_dim=48, text_dim=12, in_channels=3, out_channels=3, time_freq_dim=16
)
STEPS, MORE_STEPS, CLIP, EMA = 10, 3, 0.05, 0.9
TRIAL = Trial(
    model=CONFIG,
    tokens_per_pack=24,
    packs_per_step=4,
    steps=STEPS,
    optim=AdamWConfig(beta1=0.9, beta2=0.95, eps=1e-6, weight_decay=0.1, clip_norm=CLIP),
    lr=3e-3,
)
CPU = torch.device("cpu")


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
def reference_training(steps, dtype=torch.float32):
    """Losses, norms, weights and averaged weights of a plain AdamW loop, clipping active at every step."""
    start = dense_model(TRIAL, dtype, CPU)
    ema = {name: p.detach().clone() for name, p in start.named_parameters()}

    def average(model):
        for name, p in model.named_parameters():
            ema[name] = EMA * ema[name] + (1 - EMA) * p.detach()

    found = plain_training(replace(TRIAL, steps=steps), dtype, CPU, after_step=average)
    assert min(found.norms) > 1.5 * CLIP, "the clip must act"
    return {
        "losses": found.losses,
        "norms": found.norms,
        "master": found.tensors,
        "ema": ema,
        "predictions": predict(start, found.tensors),
        "averaged_predictions": predict(start, ema),
    }


@torch.no_grad()
def predict(model, weights):
    """What a model with these weights makes of `prediction_inputs`."""
    model.load_state_dict(weights)
    dtype = next(model.parameters()).dtype
    return torch.stack([model(inputs.to("cpu", dtype)) for inputs in prediction_inputs()])


def prediction_inputs():
    return [pack.inputs for pack in TRIAL.packs(25)[:3]]


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
