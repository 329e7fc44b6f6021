import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from model.perceptual import VGG16_LAYERS, PerceptualDistance, load_perceptual


def tiny_vgg() -> dict[str, Tensor]:
    """Random weights under VGG-16's names, four times narrower each level."""
    torch.manual_seed(0)
    tensors, channels = {}, 3
    for level, group in enumerate(VGG16_LAYERS):
        for index in group:
            width = 4 + 2 * level
            tensors[f"features.{index}.weight"] = torch.randn(width, channels, 3, 3) * 0.3
            tensors[f"features.{index}.bias"] = torch.randn(width) * 0.1
            channels = width
    return tensors


def distance_by_hand(tensors: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Zhang et al. 2018, eq. 1, layer by layer in the order of torchvision's `vgg16().features`."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    taps = {3, 8, 15, 22, 29}  # the ReLUs before each pooling
    pools = {4, 9, 16, 23}
    images = [((image + 1) / 2 - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1) for image in (x, y)]
    total = torch.zeros(())
    for layer in range(30):
        if layer in pools:
            images = [F.max_pool2d(image, 2) for image in images]
        elif f"features.{layer}.weight" in tensors:
            weight, bias = tensors[f"features.{layer}.weight"], tensors[f"features.{layer}.bias"]
            images = [F.conv2d(image, weight, bias, padding=1) for image in images]
        else:
            images = [image.clamp_min(0) for image in images]
        if layer in taps:
            a, b = (image / (image.norm(dim=1, keepdim=True) + 1e-10) for image in images)
            total = total + ((a - b) ** 2).sum(1).mean()
    return total


def test_matches_the_published_layout():
    tensors = tiny_vgg()
    x, y = torch.rand(2, 3, 32, 48) * 2 - 1, torch.rand(2, 3, 32, 48) * 2 - 1
    torch.testing.assert_close(PerceptualDistance(tensors)(x, y), distance_by_hand(tensors, x, y), rtol=1e-4, atol=0)


def test_gradients_reach_images_and_not_the_network():
    network = PerceptualDistance(tiny_vgg())
    x = torch.zeros(1, 3, 32, 32, requires_grad=True)
    network(x, torch.rand(1, 3, 32, 32)).backward()
    assert x.grad is not None and x.grad.isfinite().all() and x.grad.abs().max() > 0
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_loads_from_a_file_or_its_folder(tmp_path):
    tensors = tiny_vgg()
    save_file(tensors, tmp_path / "model.safetensors")
    x, y = torch.rand(2, 1, 3, 32, 32)
    expected = PerceptualDistance(tensors)(x, y)
    assert torch.equal(load_perceptual(tmp_path)(x, y), expected)
    assert torch.equal(load_perceptual(tmp_path / "model.safetensors")(x, y), expected)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        load_perceptual(tmp_path)
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="not a VGG-16"):
        load_perceptual(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="not a VGG-16"):
        load_perceptual(tmp_path)
