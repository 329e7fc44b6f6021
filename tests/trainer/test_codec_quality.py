import pytest
import torch
from PIL import Image

from data.clips import Clip
from model.codec import CodecConfig, build_codec
from model.codec_patch import PatchCodec, PatchCodecConfig
from model.quality import psnr, ssim
from trainer import codec_quality
from trainer.codec_clips import to_video, videos_of
from trainer.codec_quality import (
    latent_statistics,
    measure,
    measure_resampling,
    pca_codec,
    pick_spread,
    reconstruct_with,
    table,
    to_json,
    write_reconstructions,
)

CPU = torch.device("cpu")
CONFIG = PatchCodecConfig(latent_channels=4, width=8, encoder_blocks=1, decoder_blocks=1)


def clip(name: str, *, frames: int = 9, source: str | None = None) -> Clip:
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    noise = torch.rand(1, 3, 1 + frames // 4, 4, 6, generator=generator) * 255
    smooth = torch.nn.functional.interpolate(noise, size=(frames, 32, 48), mode="trilinear")[0]
    return Clip(
        key=name,
        frames_T3HW=smooth.transpose(0, 1).to(torch.uint8),
        captions={"short": name},
        source=source or name,
        fps=8.0,
        start_s=0.0,
        native_height=32,
        native_width=48,
        shard="clips-000000.tar",
        clip_key=name,
        window=0,
    )


TRAINING = [clip(f"t{n}") for n in range(6)]
HELDOUT = [clip("a"), clip("b", frames=1)]


def fitted_codec() -> PatchCodec:
    torch.manual_seed(0)
    codec = PatchCodec(CONFIG)
    codec.fit_shortcuts(videos_of(TRAINING, CPU))
    return codec


def test_every_clip_weighs_the_same():
    codec = fitted_codec()
    quality = measure(reconstruct_with(codec), HELDOUT, CPU)
    videos = [to_video(item.frames_T3HW[None]) for item in HELDOUT]
    with torch.no_grad():
        made = [codec.decode(codec.encode(video)) for video in videos]
    noise = [float(psnr(a, b)) for a, b in zip(made, videos)]
    assert quality.psnr_db == pytest.approx(sum(noise) / 2)
    assert quality.ssim == pytest.approx(sum(float(ssim(a, b)) for a, b in zip(made, videos)) / 2)
    assert quality.psnr_db_of_clip == pytest.approx(dict(zip(("a", "b"), noise)), abs=1e-3)


def test_an_untrained_patch_codec_is_its_own_pca_baseline():
    codec = fitted_codec()
    linear = measure(reconstruct_with(pca_codec(codec, TRAINING, CPU)), HELDOUT, CPU)
    before = measure(reconstruct_with(codec), HELDOUT, CPU)
    assert linear.psnr_db == pytest.approx(before.psnr_db, abs=1e-3)
    for head in (codec.head_in, codec.head_out):
        torch.nn.init.normal_(head.rest.weight)
    assert measure(reconstruct_with(codec), HELDOUT, CPU).psnr_db < before.psnr_db - 1


def test_resampling_gets_its_best_time_factor(monkeypatch):
    codec = fitted_codec()
    best = measure_resampling(codec, HELDOUT, CPU).psnr_db
    alone = []
    for factor in (1, 2, 3, 4):
        monkeypatch.setattr(codec_quality, "_TIME_FACTORS", (factor,))
        alone.append(measure_resampling(codec, HELDOUT, CPU).psnr_db)
    assert best == max(alone) > min(alone) + 0.01


def test_latent_statistics_are_those_of_all_values_together():
    torch.manual_seed(0)
    codec = build_codec(CodecConfig(patch=CONFIG)).double().float()
    mean_C, scale_C = latent_statistics(codec, TRAINING, CPU)
    with torch.no_grad():
        z = torch.cat([codec.encode(video)[0].flatten(1) for video in videos_of(TRAINING, CPU)], dim=1).double()
    torch.testing.assert_close(mean_C, z.mean(1), rtol=0, atol=1e-6)
    torch.testing.assert_close(scale_C, z.std(1, correction=0), rtol=1e-6, atol=0)


def test_the_table_says_every_number():
    codec = fitted_codec()
    qualities = {"PCA": measure(reconstruct_with(codec), HELDOUT, CPU)}
    qualities["trilinear"] = measure_resampling(codec, HELDOUT, CPU)
    text = "\n".join(table(qualities))
    for name, quality in qualities.items():
        assert name in text
        assert f"{quality.psnr_db:.2f}" in text
        assert f"{quality.ssim:.3f}" in text
    described = to_json(qualities)
    assert described["heldout_psnr"]["PCA"] == qualities["PCA"].psnr_db
    assert described["heldout"]["PCA"]["psnr_db_of_clip"].keys() == {"a", "b"}


def test_the_sheet_shows_different_sources_longest_clips_first():
    clips = [clip("a0", source="a", frames=5), clip("a1", source="a"), clip("b0", source="b"), clip("c0", source="c")]
    assert [item.key for item in pick_spread(clips, 8)] == ["a1", "b0", "c0"]
    assert [item.key for item in pick_spread(clips, 2)] == ["a1", "b0"]


def test_a_sheet_is_written(tmp_path):
    path = tmp_path / "sheet.png"
    write_reconstructions(path, fitted_codec(), HELDOUT, device=CPU, footer="Attribution of the footage")
    with Image.open(path) as image:
        assert image.width > 300
        assert image.height > 2 * 2 * 100
