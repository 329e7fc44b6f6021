"""Which sources are held out: whole sources, never single frames or windows of one."""

import hashlib
from typing import Literal

Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "heldout")


def split_of(source: str, heldout_fraction: float) -> Split:
    """The split of a source, by a hash of its name; about `heldout_fraction` of all sources are held out.

    Raising the fraction only ever moves sources from train to heldout.
    """
    if not 0.0 <= heldout_fraction < 1.0:
        raise ValueError(f"heldout_fraction={heldout_fraction} must be in [0, 1): it is a share of the sources")
    digest = hashlib.sha256(source.encode()).digest()
    uniform = int.from_bytes(digest[:8], "big") / 2**64
    return "heldout" if uniform < heldout_fraction else "train"
