"""What a run will hold and cost, against what its steps really are."""

import numpy as np
import pytest
from hydra import compose, initialize_config_dir

from data.pack import Position
from data.sample_reader import SampleReader
from model.flops import training_flops
from scaling import lengths as module
from scaling.grid import word
from scaling.lengths import StepLengths
from tests.scaling.sweep_case import ROOT, settings
from trainer.batch import PackLayout, PackRecipe, build_microbatch
from trainer.build import open_shards
from trainer.compose import to_dataclass
from trainer.config import TrainConfig


def config_of(inputs, **changes):
    words = [word(key, value) for key, value in settings(inputs, **changes).items()]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return to_dataclass(TrainConfig, compose("train", words))


def really(config, steps):
    """Tokens and FLOPs of the packs that training would make."""
    shards, plan = open_shards(config)
    recipe = PackRecipe(
        flow=config.flow, seed=config.seed, layout=PackLayout.of(config), null_text=shards.manifests[0].null_text()
    )
    reader, position, tokens, flops = SampleReader(plan.plans[0].data), Position(), [], []
    for _ in range(steps):
        packs, position = plan.step(position, config.data.packs_per_step)
        tokens.append(sum(pack.video_tokens for pack in packs))
        flops.append(0)
        for pack in packs:
            made = build_microbatch([reader.read(row) for row in pack.rows], recipe, visits=pack.visits)
            count = len(made.keys)
            flops[-1] += training_flops(
                config.model,
                video_tokens=made.inputs.segment_lengths[:count],
                text_tokens=made.inputs.text_lengths[:count],
                rows=len(made.inputs.time_R),
            )
    reader.close()
    return np.cumsum(tokens), np.cumsum(flops)


@pytest.mark.parametrize(
    "changes", [{}, {"data__packs_per_step": 3, "text__pad_to": 128}, {"data__mix__image_fraction": 0.5}]
)
def test_tokens_are_exact_and_flops_nearly(inputs, changes):
    config = config_of(inputs, **changes)
    tokens, flops = really(config, 40)
    found = StepLengths(config)
    assert [found.tokens(steps) for steps in (1, 7, 40)] == [tokens[0], tokens[6], tokens[39]]
    assert found.flops(config.model, 40) == pytest.approx(flops[-1], rel=0.01)
    assert abs(found.steps_for(config.model, flops[24]) - 25) <= 1
    assert found.steps_for_tokens(tokens[19]) == 20
    assert found.unique_tokens == sum(
        int(manifest.chunks.video_tokens.sum()) for manifest in open_shards(config)[1].plans[0].data.manifests
    )


def test_longer_runs_go_on_as_they_began(inputs, monkeypatch):
    config = config_of(inputs)
    whole = StepLengths(config)
    monkeypatch.setattr(module, "_MOST_STEPS", 128)
    short = StepLengths(config)
    assert short.tokens(100) == whole.tokens(100)
    assert short.tokens(1000) == pytest.approx(whole.tokens(1000), rel=0.02)
    budget = whole.flops(config.model, 1000)
    assert short.steps_for(config.model, budget) == pytest.approx(whole.steps_for(config.model, budget), rel=0.02)
    assert whole.steps_for(config.model, budget) == 1000


def test_a_curriculum_is_walked_through(inputs):
    """Other mixtures hold other lengths: the tokens of later stages are not those of the first."""
    stage = {"until_step": 5, "mix": {"max_tokens": 4}}
    config = config_of(inputs, data__curriculum=[stage])
    tokens, _ = really(config, 30)
    found = StepLengths(config)
    assert [found.tokens(steps) for steps in (5, 6, 30)] == [tokens[4], tokens[5], tokens[29]]
    assert found.evaluation_tokens(config) > 0
