"""A run's parts, put together: shards, layout, model, optimizer, records."""

from dataclasses import dataclass

import torch
from torch import Tensor

from data.balance import PackCost
from data.curriculum import Curriculum
from data.loader import Loader, RankShare, StepData
from data.manifest import Manifest
from data.mixture import DataSet
from data.pack import Position
from data.plan import PlanConfig
from model.codec import codec_identity
from model.flops import cost_coefficients, training_flops
from parallel.engine import TrainEngine
from parallel.runtime import Grid
from parallel.stage import build_stage
from trainer.batch import Microbatch, PackLayout, PackRecipe, build_microbatch
from trainer.config import TrainConfig
from trainer.evaluation import EvaluationSet, heldout_set, trained_set
from trainer.metrics import Metrics
from trainer.online import supplied
from trainer.samples import SampleSet
from trainer.sampling import latent_size
from trainer.starts import Starts


@dataclass(kw_only=True)
class Run:
    """What the loop works with."""

    config: TrainConfig
    grid: Grid
    engine: TrainEngine
    manifest: Manifest
    """Of `data.folder`, which held-out samples and sheets come from."""
    shards: DataSet
    """All shards, whatever their split."""
    plan: Curriculum
    null_text: Tensor
    heldout: EvaluationSet | None
    samples: SampleSet | None
    metrics: Metrics
    starts: Starts
    trained: EvaluationSet | None = None
    """Clips that are trained on, to be evaluated beside the held-out ones."""

    def loader(self, start: Position) -> Loader:
        """This data rank's packs from a position on; only the two ends of the pipeline read latents.

        Of the ranks that share packs on a stage, one reads them and hands on their bytes.
        """
        grid = self.grid
        return Loader(
            self.plan,
            start=start,
            packs_per_step=self.config.data.packs_per_step,
            steps=self.config.run.steps - start.step,
            share=RankShare(
                data_rank=grid.data_rank,
                data_size=grid.data_size,
                latents=grid.is_first_stage or grid.is_last_stage,
                reads=grid.is_first_of_packs,
            ),
            ahead=self.config.data.read_ahead(),
            hand_on=grid.hand_on if grid.pack_group.size() > 1 else None,
        )

    @property
    def recipe(self) -> PackRecipe:
        """How this rank makes its packs: the first stage reads patches, the last one targets."""
        return PackRecipe(
            flow=self.config.flow,
            seed=self.config.seed,
            layout=PackLayout.of(self.config),
            null_text=self.null_text,
            patches=self.grid.is_first_stage,
            targets=self.grid.is_last_stage,
        )

    def microbatches(self, batch: StepData) -> list[Microbatch]:
        """What this rank reads of its packs of a step: noise levels and captions, and noise at either end."""
        recipe = self.recipe
        return [
            build_microbatch(pack, recipe, visits=visits)
            for pack, visits in zip(batch.packs, batch.visits, strict=True)
        ]

    def training_flops(self, microbatches: list[Microbatch]) -> int:
        """Model FLOPs of a step over all data ranks; padding is not counted."""
        local = sum(
            training_flops(
                self.config.model,
                video_tokens=pack.inputs.segment_lengths[: len(pack.keys)],
                text_tokens=pack.inputs.text_lengths[: len(pack.keys)],
                rows=len(pack.inputs.time_R),
            )
            for pack in microbatches
        )
        return int(self.grid.sum_over_data(torch.tensor(local)).item())


def open_shards(config: TrainConfig) -> tuple[DataSet, Curriculum]:
    """All shards, and the plan of their training split; refuses what this run cannot train on."""
    wanted = plan_config(config)
    shards = supplied(config, wanted.open_shards())
    for manifest in shards.manifests:
        manifest.require_identity(
            codec=codec_identity(config.data.codec),
            text=shards.manifests[0].identity.text,
            patch_size=config.model.patch_size,
        )
        _require_shapes(config, manifest)
    _require_held_out(shards)
    return shards, wanted.open(shards)


def _require_held_out(shards: DataSet) -> None:
    """ValueError where a further manifest trains on a source that the first one holds out."""
    if len(shards.manifests) == 1:
        return
    first, *others = shards.manifests
    heldout = {*first.select("heldout").column("source").tolist()}
    for other in others:
        trained = heldout.intersection(other.select("train").column("source").tolist())
        if trained:
            raise ValueError(
                f"data.others: {other.folder} trains on {min(trained)}, one of {len(trained)} sources that "
                f"{first.folder} holds out, so held-out loss would be of what was trained on: encode both with the "
                "same heldout_fraction, or leave one out"
            )


def plan_config(config: TrainConfig) -> PlanConfig:
    """What the order of a run's data depends on."""
    data = config.data
    if data.folder is None:
        raise ValueError("data.folder=null: give latent shards, or data.clips=... to train on clips as they are")
    return PlanConfig(
        folders={data.folder: data.weight, **data.others},
        seed=config.seed,
        tokens_per_pack=data.tokens_per_pack,
        packs_per_step=data.packs_per_step,
        window=data.window,
        limit_samples=data.limit_samples,
        mix=data.mix,
        curriculum=data.curriculum,
        cost=PackCost(**cost_coefficients(config.model)) if data.cost is None else PackCost.read(data.cost),
    )


def _require_shapes(config: TrainConfig, manifest: Manifest) -> None:
    """ValueError where the model does not fit the shards, or what is observed along the way does not."""
    stored, model, samples = manifest.identity, config.model, config.samples
    if stored.text_dim != model.text_dim:
        raise ValueError(
            f"model.text_dim={model.text_dim}, but the captions in {manifest.folder} are embedded in "
            f"{stored.text_dim} values: set model.text_dim to that"
        )
    for name, channels in (("in_channels", model.in_channels), ("out_channels", model.out_channels)):
        if channels != stored.latent_channels:
            raise ValueError(
                f"model.{name}={channels}, but the latents in {manifest.folder} have {stored.latent_channels} "
                f"channels: set +model.{name}={stored.latent_channels}"
            )
    kind = config.evaluation.caption_kind
    if config.run.evaluate_every and kind not in stored.caption_kinds:
        raise ValueError(
            f"evaluation.caption_kind={kind}, but the captions in {manifest.folder} are of kind "
            f"{', '.join(stored.caption_kinds)}: set it to one of them"
        )
    if config.run.sample_every and samples.prompts:
        size = (samples.frames, samples.height, samples.width)
        try:
            latent_size(size, strides=stored.strides, patch_size=model.patch_size)
        except ValueError as error:
            raise ValueError(f"samples: {error}") from error


def build_engine(config: TrainConfig, grid: Grid) -> TrainEngine:
    """The stage of this rank and its optimizer, from initial weights."""
    return TrainEngine(grid, build_stage(grid, config.model, seed=config.seed), config.optim)


def heldout_of(config: TrainConfig, manifest: Manifest) -> EvaluationSet | None:
    """What the run is evaluated on along the way."""
    wanted = config.evaluation
    return heldout_set(config, manifest, max_samples=wanted.max_samples, levels=wanted.levels)


def trained_of(config: TrainConfig, manifest: Manifest) -> EvaluationSet | None:
    """What of the training clips is evaluated beside them."""
    wanted = config.evaluation
    if not (config.run.evaluate_every and wanted.train_samples):
        return None
    return trained_set(config, manifest, max_samples=wanted.train_samples, levels=wanted.levels)
