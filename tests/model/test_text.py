"""Text encoders against transformers' and diffusers' own way of using the same weights."""

import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import WanPipeline
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch.nn.functional import cosine_similarity
from transformers import (
    AutoModel,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from model.text import TextConfig, TextEncoder, pad_text, weights_folders

TEXTS = ["a big rabbit", "", "the squirrel sits on a branch of the tree", "a big  rabbit ", "a red bird"]
WORDS = ["<pad>", "</s>", "<unk>", *sorted({word for text in TEXTS for word in text.split()})]


@pytest.fixture(scope="module")
def minilm() -> TextEncoder:
    return TextEncoder(TextConfig())


def save_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    words.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def save_tiny(folder: Path, kind: str) -> None:
    """A random T5 in the file format of the real ones."""
    torch.manual_seed(0)
    config_class, model_class = {"t5": (T5Config, T5EncoderModel), "umt5": (UMT5Config, UMT5EncoderModel)}[kind]
    config = config_class(
        vocab_size=len(WORDS), d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=3, feed_forward_proj="gated-gelu"
    )
    model = model_class(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(folder / "text_encoder", max_shard_size="6KB")
    save_tokenizer(folder / "tokenizer")


@pytest.fixture(scope="module")
def umt5_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("umt5")
    save_tiny(folder, "umt5")
    return folder


def test_minilm_gives_the_last_hidden_state_of_valid_tokens(minilm: TextEncoder) -> None:
    folder = weights_folders(minilm.config)[0]
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    network = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    batch = tokenizer([" ".join(text.split()) for text in TEXTS], padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden_BNE = network(**batch).last_hidden_state
    for ours, hidden_NE, mask_N in zip(minilm.encode(TEXTS), hidden_BNE, batch.attention_mask, strict=True):
        assert ours.shape == (int(mask_N.sum()), 384)
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, hidden_NE[mask_N.bool()], atol=1e-5, rtol=1e-5)
    assert minilm.dim == 384


def test_minilm_knows_what_words_mean(minilm: TextEncoder) -> None:
    rabbit, hare, car = (
        text.mean(0) for text in minilm.encode(["a rabbit in a meadow", "a hare on the grass", "a car in the city"])
    )
    assert cosine_similarity(rabbit, hare, dim=0) > cosine_similarity(rabbit, car, dim=0) + 0.2


def test_a_text_does_not_depend_on_its_neighbours_or_its_spaces(minilm: TextEncoder) -> None:
    together = minilm.encode(TEXTS, batch_size=2)
    for text, embedding in zip(TEXTS, together, strict=True):
        torch.testing.assert_close(embedding, minilm.encode([text])[0], atol=1e-5, rtol=1e-5)
    # Alone: rows of one batch may be summed in another order.
    assert torch.equal(minilm.encode([TEXTS[0]])[0], minilm.encode([TEXTS[3]])[0])
    torch.testing.assert_close(minilm.null_embedding(), together[1], atol=1e-5, rtol=1e-5)
    assert minilm.encode([]) == []


def test_long_texts_are_cut_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    short = TextEncoder(TextConfig(max_tokens=5))
    with caplog.at_level(logging.WARNING, logger="model.text"):
        cut, whole = short.encode(["one two three four five six", "one two three"])
    assert (len(cut), len(whole)) == (5, 5)
    assert ["8 tokens cut to text.max_tokens=5" in record.message for record in caplog.records] == [True]
    assert [short.count(text) for text in ("one two three four", "one two three", "")] == [5, 5, 2]


@pytest.mark.parametrize("pad_to", [None, 16])
def test_umt5_is_what_the_wan_pipeline_feeds_its_transformer(umt5_folder: Path, pad_to: int | None) -> None:
    encoder = TextEncoder(TextConfig(kind="umt5", path=str(umt5_folder), max_tokens=16, pad_to=pad_to))
    pipeline = SimpleNamespace(
        tokenizer=AutoTokenizer.from_pretrained(umt5_folder / "tokenizer"),
        text_encoder=UMT5EncoderModel.from_pretrained(umt5_folder / "text_encoder").eval(),
        _execution_device=torch.device("cpu"),
    )
    with torch.no_grad():
        expected = WanPipeline._get_t5_prompt_embeds(pipeline, TEXTS, max_sequence_length=16)
    assert expected.shape == (len(TEXTS), 16, 24)
    for valid, theirs in zip(encoder.encode(TEXTS), expected, strict=True):
        assert len(valid) < 16 and not theirs[len(valid) :].any(), "only a text's own tokens are embedded"
        ours = pad_text(valid, pad_to)
        assert len(ours) == (pad_to or len(valid))
        torch.testing.assert_close(ours, theirs[: len(ours)], atol=1e-5, rtol=1e-5)
    assert encoder.dim == 24


def test_t5_is_read_by_local_path(tmp_path: Path) -> None:
    save_tiny(tmp_path, "t5")
    encoder = TextEncoder(TextConfig(kind="t5", path=str(tmp_path), max_tokens=16))
    reference = T5EncoderModel.from_pretrained(tmp_path / "text_encoder").eval()
    ids = torch.tensor([[WORDS.index(word) for word in [*TEXTS[0].split(), "</s>"]]])
    with torch.no_grad():
        torch.testing.assert_close(encoder.encode(TEXTS)[0], reference(ids).last_hidden_state[0])
    assert encoder.null_embedding().shape == (1, 24)


def test_identity_names_weights_and_settings_and_not_the_folder(umt5_folder: Path, tmp_path: Path) -> None:
    def identity(folder: Path, **settings: int) -> str:
        return TextEncoder(TextConfig(kind="umt5", path=str(folder), **settings)).identity()  # type: ignore[arg-type]

    moved = tmp_path / "moved"
    shutil.copytree(umt5_folder, moved)
    original = identity(umt5_folder)
    assert identity(moved) == original
    assert identity(moved, max_tokens=99) != original
    assert identity(moved, pad_to=512) == original, "padding is no part of what is stored"

    encoder = UMT5EncoderModel.from_pretrained(moved / "text_encoder")
    with torch.no_grad():
        encoder.encoder.final_layer_norm.weight[0] += 1e-3
    encoder.save_pretrained(moved / "text_encoder", max_shard_size="6KB")
    assert identity(moved) != original


def test_pickled_weights_are_refused(umt5_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(umt5_folder, tmp_path / "pickled")
    for path in (tmp_path / "pickled" / "text_encoder").glob("*.safetensors*"):
        path.rename(path.with_name("pytorch_model.bin"))
    with pytest.raises(ValueError, match="weights must be safetensors"):
        TextEncoder(TextConfig(kind="umt5", path=str(tmp_path / "pickled")))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "umt5"}, "needs text.path"),
        ({"pad_to": 64, "max_tokens": 128}, "pad_to=64"),
        ({"max_tokens": 1}, "max_tokens=1"),
    ],
)
def test_settings_without_sense_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextConfig(**settings)  # type: ignore[arg-type]


def test_a_missing_folder_is_named() -> None:
    with pytest.raises(ValueError, match="text.path=/no/such/folder is not a folder"):
        TextEncoder(TextConfig(kind="umt5", path="/no/such/folder"))
