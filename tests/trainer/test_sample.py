"""The sampling command with a small untrained model and a codec simple enough to check by eye."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import av
import pytest
import torch
from einops import reduce, repeat
from PIL import Image
from torch import Tensor

import trainer.sample
from data.mp4 import encode_mp4
from diffusion.timesteps import FlowConfig
from model.codec_interface import Posterior, VideoCodec
from model.dit import DiTConfig, VideoDiT
from model.init import init_weights
from model.packed import PackedInputs
from model.text import TextConfig, TextEncoder
from trainer.compose import to_dataclass
from trainer.config import SamplesConfig, TrainConfig
from trainer.inference import Predictor, TrainedModel
from trainer.sample import SampleConfig, read_frames, run

SIZE = (9, 32, 48)
CODEC = "c" * 64


class MeanCodec(VideoCodec):
    """Block means of every fourth frame; decodes to flat blocks."""

    def __init__(self) -> None:
        super().__init__(strides=(4, 8, 8), latent_channels=3)

    def posterior(self, video_B3THW: Tensor) -> Posterior:
        self.check_video(video_B3THW)
        means = reduce(video_B3THW[:, :, ::4], "b c t (h sh) (w sw) -> b c t h w", "mean", sh=8, sw=8)
        return Posterior(mean_BCthw=means, log_variance_BCthw=None)

    def decode(self, z_BCthw: Tensor) -> Tensor:
        return repeat(z_BCthw, "b c t h w -> b c (t st) (h sh) (w sw)", st=4, sh=8, sw=8)[:, :, 3:]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A run folder's content, without the folder; returns the state that its checkpoint says."""
    model = DiTConfig(num_blocks=1, num_heads=2, head_dim=6, ffn_dim=16, text_dim=384, in_channels=3, out_channels=3)
    dit = VideoDiT(model)
    init_weights(dit, seed=0)
    samples = SamplesConfig(frames=SIZE[0], height=SIZE[1], width=SIZE[2], attribution="a film, CC-BY")
    config = SimpleNamespace(
        model=model,
        text=TextConfig(),
        flow=FlowConfig(),
        samples=samples,
        data=SimpleNamespace(codec="codec", tokens_per_pack=64, position_fps=16.0),
    )
    state: dict[str, Any] = {}

    def model_of() -> TrainedModel:
        return TrainedModel(dit=dit.eval(), config=cast(TrainConfig, config), step=12, state=state)

    monkeypatch.setattr(trainer.sample, "load_for_inference", lambda *_, **__: model_of())
    monkeypatch.setattr(trainer.sample, "load_codec", lambda _: MeanCodec())
    monkeypatch.setattr(trainer.sample, "codec_identity", lambda _: CODEC)
    return state


def sample(tmp_path: Path, **settings: object) -> Path:
    run(
        SampleConfig(**({"run": "r", "prompts": "a rabbit", "out": str(tmp_path), "steps": 2, "threads": 1} | settings))
    )  # type: ignore[arg-type]
    return tmp_path


def gif_frames(path: Path) -> list[Image.Image]:
    with Image.open(path) as gif:
        frames = []
        for number in range(gif.n_frames):
            gif.seek(number)
            frames.append(gif.convert("RGB"))
        return frames


@pytest.mark.usefixtures("trained")
def test_prompts_become_videos_and_sheets(tmp_path: Path) -> None:
    out = sample(tmp_path, prompts=("a rabbit", "A red Squirrel, far away!"), seed=4)
    names = ["00_a_rabbit.gif", "00_a_rabbit.mp4", "01_a_red_squirrel_far_away.gif", "01_a_red_squirrel_far_away.mp4"]
    assert sorted(path.name for path in out.iterdir()) == [*names, "sheet.gif", "sheet.png"]
    with av.open(str(out / names[1])) as video:
        frames = list(video.decode(video=0))
    assert (len(frames), frames[0].height, frames[0].width) == SIZE
    assert gif_frames(out / names[0])[0].size == (SIZE[2], SIZE[1])
    first = (out / names[0]).read_bytes()
    assert (sample(tmp_path / "again", seed=4) / names[0]).read_bytes() == first
    assert (sample(tmp_path / "other", seed=5) / names[0]).read_bytes() != first


@pytest.mark.usefixtures("trained")
def test_videos_lie_in_time_at_the_rate_they_are_made_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []

    class Watched(Predictor):
        def __call__(self, inputs: list[PackedInputs]) -> list[Tensor]:
            steps.extend(float(pack.position_L3[-1, 0]) / 2 for pack in inputs)
            return super().__call__(inputs)

    monkeypatch.setattr(trainer.sample, "Predictor", Watched)
    for fps in (16.0, 12.8):
        sample(tmp_path, fps=fps, guidance=1.0, steps=1)
    assert steps == [1.0, 1.25]


@pytest.mark.usefixtures("trained")
def test_an_image_is_the_first_frame_of_its_video(tmp_path: Path) -> None:
    half = Image.new("RGB", (96, 64), (230, 20, 20))
    half.paste((20, 20, 230), (48, 0, 96, 64))
    half.save(tmp_path / "first.png")
    out = sample(tmp_path / "out", image=str(tmp_path / "first.png"))
    first = gif_frames(out / "00_a_rabbit.gif")[0]
    for place, colour in (((4, 16), (230, 20, 20)), ((44, 16), (20, 20, 230))):
        assert all(abs(a - b) <= 12 for a, b in zip(first.getpixel(place), colour, strict=True))


@pytest.mark.usefixtures("trained")
def test_a_weak_change_keeps_the_source_clip(tmp_path: Path) -> None:
    clip = torch.full((12, 3, 64, 96), 40, dtype=torch.uint8)
    clip[:, 1] = 200
    (tmp_path / "clip.mp4").write_bytes(encode_mp4(clip, fps=8))
    out = sample(tmp_path / "out", source=str(tmp_path / "clip.mp4"), strength=0.01, guidance=1.0)
    for frame in gif_frames(out / "00_a_rabbit.gif"):
        assert all(abs(a - b) <= 25 for a, b in zip(frame.getpixel((10, 10)), (40, 200, 40), strict=True))
    with pytest.raises(ValueError, match=r"12 frames at 8 frames/s, but 17 are asked for"):
        sample(tmp_path / "long", source=str(tmp_path / "clip.mp4"), frames=17)


def test_given_frames_are_scaled_to_cover_and_cropped_around_the_middle(tmp_path: Path) -> None:
    wide = Image.new("RGB", (400, 100), (0, 0, 0))
    wide.paste((255, 255, 255), (150, 0, 250, 100))
    wide.save(tmp_path / "wide.png")
    frames = read_frames(tmp_path / "wide.png", (1, 48, 48), fps=8)
    assert frames.shape == (1, 3, 48, 48)
    assert (frames[:, :, :, 2:-2] > 250).all()
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"broken\.png: cannot be decoded"):
        read_frames(tmp_path / "broken.png", (1, 48, 48), fps=8)


def test_a_small_image_serves_and_another_codecs_strides_do_not_matter(tmp_path: Path) -> None:
    Image.new("RGB", (9, 7), (10, 200, 30)).save(tmp_path / "small.PNG")
    frames = read_frames(tmp_path / "small.PNG", (1, 32, 48), fps=8)
    assert frames.shape == (1, 3, 32, 48)
    (tmp_path / "clip.mp4").write_bytes(encode_mp4(torch.zeros(12, 3, 64, 96, dtype=torch.uint8), fps=8))
    assert read_frames(tmp_path / "clip.mp4", (11, 24, 24), fps=8).shape == (11, 3, 24, 24)  # 11 is not 1 + 4k
    (tmp_path / "notes.txt").write_text("no media")
    with pytest.raises(ValueError, match=r"notes\.txt: unknown extension: \.txt is none of"):
        read_frames(tmp_path / "notes.txt", (1, 48, 48), fps=8)


def test_another_codec_or_text_encoder_is_refused(tmp_path: Path, trained: dict[str, Any]) -> None:
    trained["codec"] = CODEC
    trained["text"] = TextEncoder(TextConfig()).identity()
    sample(tmp_path / "same")
    trained["text"] = "t" * 64
    with pytest.raises(ValueError, match=r"the text encoder of r is not the one this model was trained with"):
        sample(tmp_path / "text")
    trained["codec"] = "d" * 64
    with pytest.raises(ValueError, match=r"codec=codec is not the one this model was trained with \(ccc.*, not ddd"):
        sample(tmp_path / "codec")
    assert [path.name for path in tmp_path.iterdir()] == ["same"]


@pytest.mark.usefixtures("trained")
def test_a_size_off_the_lattice_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="height=70 is not a multiple of 16: take 64 or 80"):
        sample(tmp_path / "out", height=70)
    assert not (tmp_path / "out").exists()


def test_settings_are_checked_first() -> None:
    with pytest.raises(ValueError, match="prompts="):
        SampleConfig(run="r", prompts=(), out="o")
    with pytest.raises(ValueError, match=r"image=no\.png is not a file"):
        SampleConfig(run="r", prompts="a", out="o", image="no.png")


@pytest.mark.parametrize(("given", "expected"), [("a rabbit", ("a rabbit",)), (["a", "b"], ("a", "b"))])
def test_one_prompt_needs_no_list(given: object, expected: tuple[str, ...]) -> None:
    config = to_dataclass(SampleConfig, {"run": "r", "out": "o", "prompts": given})
    assert config.all_prompts == expected
