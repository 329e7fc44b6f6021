"""Maximal update parametrisation over width: the best learning rate of a narrow model is that of a wide one.

Yang et al. 2022 (arXiv 2203.03466), table 8 for Adam, with heads of one width: attention's scale stays. Depth is not
covered. A model of the base width is the same with it and without.
"""

from typing import Literal

Role = Literal["vector", "input", "hidden", "output"]
_INPUTS = ("patch_embedding.weight", "conditioning.time_in.weight", "conditioning.text_in.weight")
_OUTPUT = "head.projection.weight"


def role_of(name: str) -> Role:
    """What a DiT's parameter is: how many of its dimensions grow with the width, and which.

    vector: biases, gains and tables. input: from patches, noise levels and text to the width. hidden: from width to
    width, in the blocks and in the conditioning. output: the head.
    """
    if not name.endswith(".weight") or name.endswith("norm.weight"):
        return "vector"
    if name in _INPUTS:
        return "input"
    return "output" if name == _OUTPUT else "hidden"


def rate_factor(name: str, width_factor: float) -> float:
    """Adam's learning rate of a parameter over the run's, in a model `width_factor` times as wide as the base.

    The head keeps the rate: its output is divided instead (`model.dit.Head`).
    """
    return 1 / width_factor if role_of(name) == "hidden" else 1.0
