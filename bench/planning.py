"""Tables of the planning part of the data benchmark: no file is read, ranks are simulated."""

import statistics
from pathlib import Path

import numpy as np
import yaml

from bench import mixture
from bench.plan import ours, time_plan
from bench.sampling import Score, Setting, bucket_batches, padded_batches, score, token_packs
from data.balance import PackCost
from model.dit import DiTConfig
from model.flops import cost_coefficients

MODELS = ("wan_1_3b", "wan_14b")
ROWS = (100_000, 1_000_000, 10_000_000, 100_000_000)
TIMED_STEPS = 20


def model_config(name: str) -> DiTConfig:
    conf = Path(__file__).parents[1] / "conf" / "model" / f"{name}.yaml"
    return DiTConfig(**yaml.safe_load(conf.read_text()))


def scores(model: str, setting: Setting) -> dict[str, Score]:
    """Each way's score on the same samples."""
    # Batches of 8 samples need the most: more than a pack holds of these.
    sizes = mixture.draw(10 * setting.steps * setting.packs_per_step + 20_000)
    tokens_n, text_n, config = sizes.tokens_n, sizes.text_n, model_config(model)
    rng = np.random.default_rng(1)
    planned = ours(
        tokens_n,
        ranks=setting.ranks,
        packs_per_rank=setting.packs_per_rank,
        budget=setting.budget,
        window=setting.window,
        steps=setting.steps,
        cost=PackCost(**cost_coefficients(config)),
    )
    budget = setting.budget
    return {
        "Tessera": score(planned, tokens_n, text_n, config, padded_to=budget),
        "token packs alone": score(token_packs(tokens_n, setting, rng), tokens_n, text_n, config, padded_to=budget),
        "fixed batch a bucket": score(
            bucket_batches(tokens_n, setting, rng), tokens_n, text_n, config, padded_to=budget
        ),
        "pad to longest of 8": score(padded_batches(tokens_n, setting, rng), tokens_n, text_n, config, padded_to=0),
    }


def spread(values: list[float]) -> str:
    return f"{statistics.fmean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def print_scores(setting: Setting) -> None:
    print(
        f"Planning: mixed images and clips, {setting.ranks} simulated ranks x {setting.packs_per_rank} packs of "
        f"{setting.budget:,} tokens, window {setting.window}; mean of {setting.steps} steps (lowest to highest)"
    )
    for model in MODELS:
        result = scores(model, setting)
        print(f" {model:22s} {'fill':24s}{'FLOPs mean/max, ranks':24s}{'max/mean a microbatch':24s}", end="")
        print("throughput / Tessera's")
        for name, one in result.items():
            # Steps of different ways hold different samples, so their ratios are of means; the spread is over steps.
            base = statistics.fmean(result["Tessera"].speed)
            print(
                f"  {name:21s} {spread(one.fill):24s}{spread(one.balance):24s}{spread(one.microbatch):24s}"
                f"{spread([speed / base for speed in one.speed])}",
                flush=True,
            )


def print_times(setting: Setting, rows: tuple[int, ...] = ROWS) -> None:
    print(f"Order, packs and their ranks for {setting.packs_per_step} packs a step; median of {TIMED_STEPS} steps")
    first_s = 0.0
    for count in rows:
        timed = time_plan(
            count,
            packs_per_step=setting.packs_per_step,
            budget=setting.budget,
            window=setting.window,
            steps=TIMED_STEPS,
        )
        step_s = statistics.median(timed.step_s)
        first_s = first_s or step_s
        print(
            f"  {count:11,d} rows {1000 * step_s:8.2f} ms a step ({1000 * min(timed.step_s):.2f} to "
            f"{1000 * max(timed.step_s):.2f}), {step_s / first_s:.2f} of the first; start {timed.start_s:.2f} s",
            flush=True,
        )
