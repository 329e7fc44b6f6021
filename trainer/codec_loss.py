"""What a codec is trained towards: reconstruction, a term that keeps latents in bounds, perceptual distance.

Shapes: B clips, C latent channels, T x H x W video, t x h x w latent grid.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from model.codec import Posterior, VideoCodec
from model.perceptual import PerceptualDistance
from trainer.codec_config import CodecLossConfig


@dataclass(frozen=True, kw_only=True)
class CodecLoss:
    """`total` is what is differentiated; `terms` are unweighted and detached, `mse` always among them."""

    total: Tensor
    terms: dict[str, Tensor]


def codec_loss(
    codec: VideoCodec,
    video_B3THW: Tensor,
    config: CodecLossConfig,
    *,
    generator: torch.Generator,
    features: PerceptualDistance | None = None,
) -> CodecLoss:
    """Encode, draw latents, decode, compare. `generator` is a CPU generator."""
    posterior = codec.posterior(video_B3THW)
    noise = torch.randn(posterior.mean_BCthw.shape, generator=generator).to(video_B3THW.device)
    decoded_B3THW = codec.decode(draw_latent(posterior, noise, latent_noise=config.latent_noise)).float()
    error = decoded_B3THW - video_B3THW
    mse, l1 = error.square().mean(), error.abs().mean()
    total = mse if config.reconstruction == "mse" else l1
    terms = {"mse": mse, "l1": l1, **latent_terms(posterior)}
    for name, weight in (("latent_penalty", config.latent_penalty), ("kl", config.kl)):
        if weight:
            total = total + weight * terms[name]
    if features is not None:
        frames = (rearrange(video, "b c t h w -> (b t) c h w") for video in (decoded_B3THW, video_B3THW))
        terms["perceptual"] = features(*frames)
        total = total + config.perceptual * terms["perceptual"]
    return CodecLoss(total=total, terms={name: term.detach() for name, term in terms.items()})


def draw_latent(posterior: Posterior, noise_BCthw: Tensor, *, latent_noise: float) -> Tensor:
    """A sample of the posterior; where it is a point, noise of deviation `latent_noise` is added to it."""
    if posterior.log_variance_BCthw is None:
        return posterior.mean_BCthw + latent_noise * noise_BCthw
    return posterior.mean_BCthw + torch.exp(0.5 * posterior.log_variance_BCthw) * noise_BCthw


def latent_terms(posterior: Posterior) -> dict[str, Tensor]:
    """Mean over latent values: the squared latent, or the divergence from N(0, 1) (Kingma and Welling 2014, app. B)."""
    mean = posterior.mean_BCthw.float()
    if posterior.log_variance_BCthw is None:
        return {"latent_penalty": mean.square().mean()}
    log_variance = posterior.log_variance_BCthw.float()
    return {"kl": 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()}
