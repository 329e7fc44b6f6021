"""The `patch` codec: linear patch embeddings that start as whitened PCA, refined by causal convolutions.

Frame 0 is compressed by itself, later frames in blocks of four, both by one linear map per patch (the shortcut).
Convolution blocks at latent resolution add a correction on either side; their heads start at zero, so that an
untrained codec whose shortcuts were fitted is exactly the PCA codec with the same number of values.

Shapes: B clips, t x h x w latent grid, C latent channels, D features, P values of a patch, N patches.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from model.codec_interface import Posterior, VideoCodec
from model.pca import PrincipalComponents, StreamingCovariance

_LEAST_DEVIATION = 1e-4
"""Of [-1, 1]; flat clips (tests, black video) have directions without variance."""


@dataclass(frozen=True, kw_only=True)
class PatchCodecConfig:
    """Sizes of a `PatchCodec`; without blocks it is the PCA codec."""

    latent_channels: int = 16
    strides: tuple[int, int, int] = (4, 8, 8)
    width: int = 128
    encoder_blocks: int = 1
    decoder_blocks: int = 3

    def __post_init__(self) -> None:
        if self.width < 1 or self.encoder_blocks < 0 or self.decoder_blocks < 0 or min(self.strides) < 1:
            raise ValueError(f"patch codec sizes must be positive: {self}")
        first_patch = 3 * self.strides[1] * self.strides[2]
        if not 1 <= self.latent_channels <= first_patch:
            raise ValueError(
                f"latent_channels={self.latent_channels} must lie between 1 and the {first_patch} values of a patch"
            )


@dataclass(frozen=True)
class FirstRest:
    """Something of latent frame 0, `first` `[B, 1, h, w, F]`, and of the later ones, `rest` `[B, t - 1, h, w, G]`."""

    first: Tensor
    rest: Tensor

    def joined(self) -> Tensor:
        """One tensor `[B, t, h, w, F]`, where both have the same width."""
        return torch.cat([self.first, self.rest], dim=1)

    def __add__(self, other: "FirstRest") -> "FirstRest":
        return FirstRest(self.first + other.first, self.rest + other.rest)


def split_first(x_BthwF: Tensor) -> FirstRest:
    """Inverse of `FirstRest.joined`."""
    return FirstRest(x_BthwF[:, :1], x_BthwF[:, 1:])


def to_patches(video_B3THW: Tensor, strides: tuple[int, int, int]) -> FirstRest:
    """Cut a clip of 1 + k * st frames into the patches of frame 0 and of the k blocks after it."""
    st, sh, sw = strides
    head, tail = video_B3THW[:, :, :1], video_B3THW[:, :, 1:]
    first = rearrange(head, "b c t (h ph) (w pw) -> b t h w (ph pw c)", ph=sh, pw=sw)
    rest = rearrange(tail, "b c (t pt) (h ph) (w pw) -> b t h w (pt ph pw c)", pt=st, ph=sh, pw=sw)
    return FirstRest(first, rest)


def from_patches(patches: FirstRest, strides: tuple[int, int, int]) -> Tensor:
    """Inverse of `to_patches`."""
    st, sh, sw = strides
    head = rearrange(patches.first, "b t h w (ph pw c) -> b c t (h ph) (w pw)", ph=sh, pw=sw)
    tail = rearrange(patches.rest, "b t h w (pt ph pw c) -> b c (t pt) (h ph) (w pw)", pt=st, ph=sh, pw=sw)
    return torch.cat([head, tail], dim=2)


class FirstRestLinear(nn.Module):
    """One linear map for latent frame 0, another for the later ones; (in, out) features of each."""

    def __init__(self, *, first: tuple[int, int], rest: tuple[int, int]) -> None:
        super().__init__()
        self.first = nn.Linear(*first)
        self.rest = nn.Linear(*rest)

    def forward(self, x: FirstRest) -> FirstRest:
        return FirstRest(self.first(x.first), self.rest(x.rest))

    def zeroed(self) -> "FirstRestLinear":
        """Itself, as the zero map."""
        for parameter in self.parameters():
            nn.init.zeros_(parameter)
        return self


class CausalBlock(nn.Module):
    """Residual block on `[B, t, h, w, D]`: spatial 3 x 3, then 3 taps over this latent frame and the two before."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.spatial = nn.Conv2d(width, width, 3, padding=1)
        self.temporal = nn.Linear(3 * width, width)

    def forward(self, x_BthwD: Tensor) -> Tensor:
        batch, frames = x_BthwD.shape[:2]
        frames_NDhw = rearrange(self.norm(x_BthwD), "b t h w d -> (b t) d h w")
        h_BthwD = rearrange(self.spatial(frames_NDhw), "(b t) d h w -> b t h w d", b=batch)
        h_BthwD = F.silu(h_BthwD)
        padded = F.pad(h_BthwD, (0, 0, 0, 0, 0, 0, 2, 0))
        taps = torch.cat([padded[:, tap : tap + frames] for tap in range(3)], dim=-1)
        return x_BthwD + self.temporal(taps)


class PatchCodec(VideoCodec):
    """See the module's docstring. Call `fit_shortcuts` first, then train."""

    def __init__(self, config: PatchCodecConfig) -> None:
        super().__init__(strides=config.strides, latent_channels=config.latent_channels)
        self.config = config
        st, sh, sw = config.strides
        first, rest = 3 * sh * sw, 3 * st * sh * sw
        latent, width = config.latent_channels, config.width
        self.shortcut_in = FirstRestLinear(first=(first, latent), rest=(rest, latent))
        self.shortcut_out = FirstRestLinear(first=(latent, first), rest=(latent, rest))
        self.embed_in = FirstRestLinear(first=(first, width), rest=(rest, width))
        self.blocks_in = nn.Sequential(*(CausalBlock(width) for _ in range(config.encoder_blocks)))
        self.head_in = FirstRestLinear(first=(width, latent), rest=(width, latent)).zeroed()
        self.embed_out = FirstRestLinear(first=(latent, width), rest=(latent, width))
        self.blocks_out = nn.Sequential(*(CausalBlock(width) for _ in range(config.decoder_blocks)))
        self.head_out = FirstRestLinear(first=(width, first), rest=(width, rest)).zeroed()

    def posterior(self, video_B3THW: Tensor) -> Posterior:
        self.check_video(video_B3THW)
        patches = to_patches(video_B3THW, self.strides)
        features_BthwD = self.blocks_in(self.embed_in(patches).joined())
        z = self.shortcut_in(patches) + self.head_in(split_first(features_BthwD))
        return Posterior(mean_BCthw=rearrange(z.joined(), "b t h w c -> b c t h w"), log_variance_BCthw=None)

    def decode(self, z_BCthw: Tensor) -> Tensor:
        z = split_first(rearrange(z_BCthw, "b c t h w -> b t h w c"))
        features_BthwD = self.blocks_out(self.embed_out(z).joined())
        return from_patches(self.shortcut_out(z) + self.head_out(split_first(features_BthwD)), self.strides)

    def shortcut_parameters(self) -> list[nn.Parameter]:
        """What `fit_shortcuts` fits; it wants a lower learning rate than the rest."""
        return [*self.shortcut_in.parameters(), *self.shortcut_out.parameters()]

    def fit_shortcuts(self, videos: Iterable[Tensor]) -> dict[str, float]:
        """Set the shortcuts to whitened PCA of the patches of `videos` (each `[B, 3, T, H, W]` in [-1, 1]).

        Returns the fraction of variance explained in frame 0 (`first`) and in later frames (`rest`).

        Raises:
            ValueError: too few patches for so many latent channels.
        """
        st, sh, sw = self.strides
        first, rest = StreamingCovariance(3 * sh * sw), StreamingCovariance(3 * st * sh * sw)
        for video_B3THW in videos:
            self.check_video(video_B3THW)
            patches = to_patches(video_B3THW, self.strides)
            first.add(rearrange(patches.first, "b t h w p -> (b t h w) p"))
            rest.add(rearrange(patches.rest, "b t h w p -> (b t h w) p"))
        fitted = {"first": first.components(self.latent_channels), "rest": rest.components(self.latent_channels)}
        _set_whitening(self.shortcut_in.first, self.shortcut_out.first, fitted["first"])
        _set_whitening(self.shortcut_in.rest, self.shortcut_out.rest, fitted["rest"])
        return {name: components.explained for name, components in fitted.items()}


@torch.no_grad()
def _set_whitening(towards: nn.Linear, back: nn.Linear, components: PrincipalComponents) -> None:
    """z = direction (x - mean) / deviation, so that every latent channel has unit variance; and its inverse."""
    deviation_K = components.variance_K.sqrt().clamp_min(_LEAST_DEVIATION)
    whitening_KP = components.direction_KP / deviation_K[:, None]
    towards.weight.copy_(whitening_KP)
    towards.bias.copy_(-whitening_KP @ components.mean_P)
    back.weight.copy_((components.direction_KP * deviation_K[:, None]).T)
    back.bias.copy_(components.mean_P)
