"""Small shards that can be learned, and what a sweep over runs on them is made of."""

from pathlib import Path

from hydra import compose, initialize_config_dir

from scaling.grid import GridConfig, Planner, Point, word
from scaling.ladder import LadderConfig
from tests.trainer.evaluation_case import CHANNELS, TEXT_DIM, write_case

ROOT = Path(__file__).parents[2]
LADDER = LadderConfig(head_dim=8, base_size=4e3, lr=1e-2)


def write_inputs(folder):
    """`latents/` and `codec/`: forty clips to train on, eight held out."""
    write_case(folder, heldout=range(8), training=40)


def settings(folder, **changes):
    """For `train`: a run on those shards; `data__window=3` is `data.window: 3`."""
    plain = {
        "model": "nano",
        "model.text_dim": TEXT_DIM,
        "model.in_channels": CHANNELS,
        "model.out_channels": CHANNELS,
        "data.folder": str(folder / "latents"),
        "data.codec": str(folder / "codec"),
        "data.tokens_per_pack": 48,
        "data.packs_per_step": 1,
        "evaluation.levels": 2,
        "run.checkpoint_every": 10,
        "wandb.mode": "disabled",
    }
    return plain | {name.replace("__", "."): value for name, value in changes.items()}


def compose_train(words):
    """As `scaling.sweep` composes, without its command."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", list(words))


def planner(folder, *, grid=None, ladder=LADDER, ranks=1, **changes):
    """Of cells on the shards in `folder`."""
    base = [word(key, value) for key, value in settings(folder, **changes).items()]
    return Planner(base, grid or GridConfig(train_samples=8), ladder, ranks=ranks, compose=compose_train)


def cell(folder, name="cell", *, made=None, **place):
    """A planned cell whose run lies in `folder/runs/NAME`."""
    point = Point(**{"size": "3k", "budget": 2e9, "lr_factor": 1.0, "seed": 0, "words": ()} | place)
    return (made or planner(folder)).cell(name, point, [f"name={name}", f"folder={folder / 'runs' / name}"])
