"""The byte-level tokenizer of tiny models, hashes of tokenizers, and text to token ids in bulk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from prismlab.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EOS, PAD = "<|eos|>", "<|pad|>"
LONGEST_PROMPT = 1 << 30
"""``model_max_length``: bytes are never cut by the tokenizer; what fits is the model's business."""


def _byte_vocabulary() -> dict[str, int]:
    """The printable stand-in of each byte (that of byte-level BPE, Radford et al. 2019), mapped to the byte itself."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + at): byte for at, byte in enumerate(rest)}


def build_byte_tokenizer() -> PreTrainedTokenizerBase:
    """A tokenizer whose token ids 0 to 255 are the bytes of UTF-8, with ``<|eos|>`` (256) and ``<|pad|>`` (257).

    No normaliser, no beginning-of-sequence token, and text that spells a special token stays text, so that
    ``decode(encode(s)) == s`` for every string of Unicode scalar values.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(vocab=_byte_vocabulary(), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        pad_token=PAD,
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
        model_max_length=LONGEST_PROMPT,
    )


def _state(tokenizer: Any) -> dict[str, Any]:
    """The tokenizer as JSON, without padding and truncation, which callers switch on and off."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise CheckpointError(
            f"{type(tokenizer).__name__} is not a tokenizer of the 'tokenizers' library: convert it to a tokenizer.json"
        )
    state: dict[str, Any] = json.loads(backend.to_str())
    return {key: value for key, value in state.items() if key not in ("padding", "truncation")}


def tokenizer_hash(tokenizer_or_folder: PreTrainedTokenizerBase | str | Path) -> str:
    """BLAKE2b (128 bits, hexadecimal) of what decides a tokenizer's ids: model, rules, tokens, and the id that ends.

    Raises:
        CheckpointError: the folder has no tokenizer, or it is not one of the 'tokenizers' library.
    """
    tokenizer: Any = tokenizer_or_folder
    if isinstance(tokenizer_or_folder, (str, Path)):
        from prismlab.model.checkpoint import load_tokenizer

        tokenizer = load_tokenizer(Path(tokenizer_or_folder))
    whole = {"state": _state(tokenizer), "eos": tokenizer.eos_token_id}
    text = json.dumps(whole, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def is_byte_tokenizer(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether token ids are the bytes of the text, so that no tokenizer need be run."""
    state = _state(tokenizer)
    pre: dict[str, Any] = state.get("pre_tokenizer") or {}
    return (
        state.get("normalizer") is None
        and state["model"].get("type") == "BPE"
        and not state["model"].get("merges")
        and state["model"].get("vocab") == _byte_vocabulary()
        and pre.get("type") == "ByteLevel"
        and not pre.get("add_prefix_space")
        and all(token["special"] for token in state.get("added_tokens", ()))
    )


class Encoder:
    """Text to token ids, many documents at a time. Text that spells a special token stays text.

    Raises:
        CheckpointError: the tokenizer has no end-of-sequence token or is not one of the 'tokenizers' library.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        from tokenizers import Tokenizer

        eos = tokenizer.eos_token_id
        if not isinstance(eos, int):
            raise CheckpointError("the tokenizer has no end-of-sequence token; set 'eos_token' in its config")
        self.eos = eos
        self.vocab = len(tokenizer)
        self.dtype = np.dtype("<u2" if self.vocab < 2**16 else "<u4")
        self._backend: Any = None
        if not is_byte_tokenizer(tokenizer):
            # A copy: the caller's tokenizer keeps its settings.
            self._backend = Tokenizer.from_str(json.dumps(_state(tokenizer) | {"padding": None, "truncation": None}))
            self._backend.encode_special_tokens = True

    def encode(self, texts: Sequence[str]) -> list[NDArray[Any]]:
        """Token ids of each text, the end-of-sequence token last, in the narrowest type that holds the vocabulary."""
        if self._backend is None:
            return [self._bytes(text) for text in texts]
        encoded = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array([*one.ids, self.eos], dtype=self.dtype) for one in encoded]

    def _bytes(self, text: str) -> NDArray[Any]:
        raw = np.frombuffer(text.encode("utf-8"), dtype=np.uint8)
        ids = np.empty(len(raw) + 1, dtype=self.dtype)
        ids[:-1] = raw
        ids[-1] = self.eos
        return ids

    def prompt_tokens(self, texts: Sequence[str], characters: Sequence[int]) -> list[int]:
        """How many tokens of each text, encoded as ``encode`` does, lie wholly within its first characters.

        Args:
            texts: whole documents.
            characters: per text, how many characters its prompt has.
        """
        if self._backend is None:
            return [len(text[:most].encode("utf-8")) for text, most in zip(texts, characters, strict=True)]
        # With offsets, in characters of the text as it was given: slower, so only asked for where a loss is masked.
        encoded = self._backend.encode_batch(list(texts), add_special_tokens=False)
        return [
            next((at for at, (_, end) in enumerate(one.offsets) if end > most), len(one.ids))
            for one, most in zip(encoded, characters, strict=True)
        ]
