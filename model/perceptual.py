"""Distance between images in the features of a VGG network read from a local file (LPIPS with unit weights).

Shapes: N images, C channels.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

VGG16_LAYERS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
"""Indices of the convolutions in `features.N.weight`, a pooling between the groups (VGG-16, torchvision's names)."""
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_EPS = 1e-10


class PerceptualDistance(nn.Module):
    """Mean squared difference of channel-normalised VGG-16 features, summed over its five levels.

    Zhang et al. 2018, eq. 1, with all channel weights one. The network is frozen; gradients reach the images.
    """

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.levels = nn.ModuleList()
        for group in VGG16_LAYERS:
            self.levels.append(nn.Sequential(*(layer for index in group for layer in _convolution(tensors, index))))
        self.register_buffer("mean_C11", torch.tensor(_IMAGENET_MEAN).view(3, 1, 1))
        self.register_buffer("std_C11", torch.tensor(_IMAGENET_STD).view(3, 1, 1))
        self.requires_grad_(False)

    mean_C11: Tensor
    std_C11: Tensor

    def forward(self, image_N3HW: Tensor, reference_N3HW: Tensor) -> Tensor:
        """Scalar distance of images in [-1, 1], mean over images and pixels."""
        x, y = (((image + 1) / 2 - self.mean_C11) / self.std_C11 for image in (image_N3HW, reference_N3HW))
        total = x.new_zeros(())
        for number, level in enumerate(self.levels):
            if number:
                x, y = F.max_pool2d(x, 2), F.max_pool2d(y, 2)
            x, y = level(x), level(y)
            total = total + (_unit(x) - _unit(y)).square().sum(1).mean()
        return total


def load_perceptual(path: str | Path) -> PerceptualDistance:
    """Read a safetensors file of VGG-16 (torchvision's names, as in timm's `vgg16.tv_in1k`), or the folder of one.

    Raises:
        ValueError: no such file, or not a VGG-16.
    """
    file = Path(path) / "model.safetensors" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise ValueError(f"feature network {file} does not exist: give a safetensors file of VGG-16")
    try:
        return PerceptualDistance(load_file(file))
    except (KeyError, SafetensorError) as error:
        raise ValueError(f"{file} is not a VGG-16 in safetensors ({error}): take timm's vgg16.tv_in1k") from error


def _convolution(tensors: dict[str, Tensor], index: int) -> list[nn.Module]:
    weight, bias = tensors[f"features.{index}.weight"], tensors[f"features.{index}.bias"]
    layer = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
    return [layer, nn.ReLU()]


def _unit(feature_NCHW: Tensor) -> Tensor:
    """Unit length along channels at every pixel."""
    return feature_NCHW / (feature_NCHW.square().sum(1, keepdim=True) + _EPS).sqrt()
