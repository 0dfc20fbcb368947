"""What goes beside merged weights: which configs and tokenizers fit one another, and whose is taken."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prismlab.errors import CheckpointError, shown
from prismlab.model.folder import CONFIG, beside_weights, read_json

MAX_TOKENIZER = 256_000_000
"""Longest file of a tokenizer in bytes."""
RECORD = "merge.json"
_SLOW = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt", "merges.txt")
"""Files that decide the ids where there is no ``tokenizer.json``."""
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "chat_template.json")
TOKENIZER = frozenset(("tokenizer.json", "added_tokens.json", *_SLOW, *_SETTINGS))
"""Files that belong to a tokenizer."""
_DECISIVE = (
    *("num_attention_heads", "num_key_value_heads", "head_dim", "num_experts_per_tok", "position_embedding_type"),
    *("hidden_act", "mlp_hidden_act", "layer_types", "layers_block_type", "hybrid_override_pattern"),
    *("mamba_n_heads", "mamba_num_heads", "mamba_d_head", "mamba_head_dim", "mamba_n_groups", "n_groups"),
    *("mamba_d_state", "ssm_state_size"),
)
"""Settings by which equal shapes mean different networks."""
_IDLE = frozenset(("dtype", "torch_dtype", "transformers_version", "_name_or_path", "use_cache", "architectures"))
"""Settings that do not change what the network computes."""


def _text(value: object) -> str:
    return shown(json.dumps(value, ensure_ascii=False), 60)


def check_configs(configs: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    """Settings in which the configs differ, of which the first's is taken; both must be there to differ.

    Raises:
        CheckpointError: one differs by which equal shapes mean different networks (``num_attention_heads``).
    """
    first, differ = configs[0], set[str]()
    for config, name in zip(configs[1:], names[1:], strict=True):
        apart = sorted(key for key in set(first) & set(config) - _IDLE if first[key] != config[key])
        decisive = [key for key in _DECISIVE if key in apart]
        if decisive:
            key = decisive[0]
            raise CheckpointError(
                f"{key} is {_text(first[key])} in {names[0]} and {_text(config[key])} in {name}: networks that differ "
                "so cannot be merged"
            )
        differ.update(apart)
    return sorted(differ)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def _ids(folder: Path) -> str | None:
    """Digest of what decides a tokenizer's ids: kind, vocabulary, merges, added tokens; None without a tokenizer."""
    files = {file.name: file for file in beside_weights(folder)}
    if "tokenizer.json" not in files:
        slow = [files[name] for name in _SLOW if name in files]
        return " ".join(f"{file.name} {_hash(file)}" for file in slow) or None
    state = read_json(files["tokenizer.json"], "tokenizer", MAX_TOKENIZER)
    try:
        model = state["model"]
        # Newer versions of the tokenizers library write a merge as a pair, older ones as one text.
        merges = [merge if isinstance(merge, str) else " ".join(map(str, merge)) for merge in model.get("merges") or []]
        added = [(token.get("id"), token.get("content")) for token in state.get("added_tokens") or []]
    except (AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{files['tokenizer.json']}: 'model', its merges or 'added_tokens' are missing or of another form than the "
            "tokenizers library writes; save the tokenizer again"
        ) from error
    whole = [model.get("type"), model.get("vocab"), merges, added]
    return hashlib.blake2b(json.dumps(whole, sort_keys=True).encode(), digest_size=16).hexdigest()


def check_tokenizers(folders: Sequence[Path], names: Sequence[str], chosen: int | None) -> tuple[int | None, list[str]]:
    """Whose tokenizer goes beside the merged weights, and what is to be said of it.

    Args:
        folders: of the checkpoints.
        names: what to call them.
        chosen: whose tokenizer the user wants, by position; None for the first that has one.

    Returns:
        Position (None if no checkpoint has a tokenizer), and notes.

    Raises:
        CheckpointError: tokenizers give other ids and none was chosen, or the chosen one is not there.
    """
    kinds: dict[int, str] = {}
    same = {_hash(file) for folder in folders for file in beside_weights(folder) if file.name == "tokenizer.json"}
    for at, folder in enumerate(folders):
        # Equal files need not be parsed; a digest of the whole file stands for what it holds.
        plain = len(same) == 1 and (folder / "tokenizer.json").is_file()
        found = next(iter(same)) if plain else _ids(folder)
        if found is not None:
            kinds[at] = found
    if chosen is not None and chosen not in kinds:
        raise CheckpointError(f"{names[chosen]}: has no tokenizer to take; choose another checkpoint's")
    taken = chosen if chosen is not None else next(iter(kinds), None)
    if taken is None:
        return None, ["no checkpoint has a tokenizer, so the merged one has none"]
    apart = [names[at] for at, kind in kinds.items() if kind != kinds[taken]]
    if apart and chosen is None:
        raise CheckpointError(
            f"the tokenizers of {names[taken]} and {apart[0]} give other ids to the same text, so that rows of their "
            f"embeddings mean different tokens; if you know better, choose whose to take, for example with "
            f"--tokenizer-from {names[taken]}"
        )
    notes = [f"tokenizer taken from {names[taken]}, though that of {', '.join(apart)} gives other ids"] if apart else []
    without = [name for at, name in enumerate(names) if at not in kinds]
    if without:
        notes.append(f"no tokenizer to compare in {', '.join(without)}")
    return taken, notes + _other_files(folders, names, taken)


def _other_files(folders: Sequence[Path], names: Sequence[str], taken: int) -> list[str]:
    """A note where chat templates differ: the ids are the same, what is put around a prompt is not."""
    apart = []
    for file in _SETTINGS:
        hashes = {at: _hash(folder / file) for at, folder in enumerate(folders) if (folder / file).is_file()}
        if len(set(hashes.values())) > 1:
            apart.append(file)
    return [f"{', '.join(apart)} differ; taken from {names[taken]}"] if apart else []


def copy_beside(
    first: Path, tokenizer: Path | None, out: Path, changes: Mapping[str, Any], config: Mapping[str, Any]
) -> None:
    """Write config, tokenizer and the other small files of a merged checkpoint to ``out``.

    Args:
        first: whose files are copied, but for those of the tokenizer, and but for a record of an earlier merge.
        tokenizer: whose tokenizer is copied; None for none.
        out: where they go.
        changes: settings of the config that differ from the first's; None deletes one.
        config: the first's config.
    """
    for folder, wanted in ((first, False), (tokenizer, True)):
        for file in beside_weights(folder) if folder is not None else ():
            if (file.name in TOKENIZER) is wanted and file.name not in (CONFIG, RECORD):
                shutil.copyfile(file, out / file.name)
    merged = {key: value for key, value in {**config, **changes}.items() if value is not None or key not in changes}
    (out / CONFIG).write_text(json.dumps(merged, indent=2, sort_keys=True) + "\n", encoding="utf-8")
