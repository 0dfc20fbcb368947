"""A checkpoint by what a user calls it: a folder, or a model id of the hub, which is fetched into the local cache."""

from __future__ import annotations

import re
from pathlib import Path

from prismlab.cost.names import hub_id
from prismlab.errors import CheckpointError, MissingExtra, shown
from prismlab.model.folder import BESIDE, PICKLED, SINGLE

WANTED = (*BESIDE, "*.safetensors")
"""What is fetched of a model: configuration, weights, tokenizer, chat template. Never pickle, code only if asked."""
FOREIGN = "consolidated"
"""How weight files begin that some models carry besides, in their maker's own layout."""
_ID = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>\w[\w./-]*))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def fetch(name: str, *, code: bool = False) -> Path:
    """The folder of a model id (``owner/name``, ``@revision`` optional) in the local cache, fetched if it is not there.

    Without a network the cache answers alone, also where ``HF_HUB_OFFLINE`` says so. With ``code`` the model's Python
    files come along.

    Raises:
        CheckpointError: ``name`` is no model id, or the model can be had neither from the hub nor from the cache.
        MissingExtra: the package ``huggingface_hub`` is not installed.
    """
    match = _ID.fullmatch(name)
    if match is None or ".." in name:
        raise CheckpointError(
            f"'{shown(name)}' is neither a folder nor a model id ('owner/name', '@revision' optional)"
        )
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ImportError as error:
        raise MissingExtra("huggingface_hub", "hub", f"the checkpoint {name}") from error
    ignored = [f"{FOREIGN}*", *PICKLED]
    try:
        return Path(
            snapshot_download(
                match["repo"],
                revision=match["revision"],
                allow_patterns=[*WANTED, *(["*.py"] if code else [])],
                ignore_patterns=ignored,
            )
        )
    except HFValidationError as error:
        raise CheckpointError(f"'{shown(name)}' is no model id ('owner/name', '@revision' optional)") from error
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = shown(next(iter(str(error).splitlines()), type(error).__name__), 200)
        raise CheckpointError(
            f"the model '{name}' cannot be fetched and is not in the local cache ({reason}); check the id, the network "
            "and the login, or name a folder"
        ) from error


def resolve(text: str | Path) -> Path:
    """The folder of a checkpoint that a user names: a folder, or a model id as in ``fetch``.

    A folder goes before an id of the same name. What begins like a path that is there (``runs/x`` where ``runs`` is a
    folder) is taken for a path, so that a slip in it asks no server.

    Raises:
        CheckpointError: there is no such folder, it is a file, or the model cannot be had.
        MissingExtra: a model id without the package ``huggingface_hub``.
    """
    path, name = Path(text).expanduser(), hub_id(str(text))
    if name and path.is_dir():
        return path
    if name and path.exists():
        raise CheckpointError(f"{path}: a file; name the checkpoint's folder, that of {SINGLE} and config.json")
    if not isinstance(text, str) or _ID.fullmatch(name) is None or Path(name.partition("/")[0]).is_dir():
        raise CheckpointError(
            f"{shown(name, 300)}: no such folder; a checkpoint is a folder, or a model id ('owner/name', '@revision' "
            "optional)"
        )
    return fetch(name)


def revision(folder: Path) -> str | None:
    """The commit that a folder of the hub's cache (``.../snapshots/<commit>``) holds; None for any other folder."""
    real = Path(folder).resolve()
    return real.name if real.parent.name == "snapshots" and _COMMIT.fullmatch(real.name) else None
