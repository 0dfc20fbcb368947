"""Code that a checkpoint brings for a class of its own: run only where the study trusts it, and only the same files.

A base with ``trust_remote_code: true`` brings its ``*.py`` along. Their hashes stand in the record of the base and of
every step made from it (``remote_code``), and while such a step runs, files with these hashes, and no others, may be
imported. Code of a tokenizer is never run. Code that lies in another repository or below a subfolder is not brought.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from prismlab.errors import CheckpointError, shown
from prismlab.model.folder import code_hash, read_config
from prismlab.run.step import trusted

CODE = "*.py"
MODEL = "AutoModelForCausalLM"
"""Key of ``auto_map`` in ``config.json`` under which a class for our use stands."""


def code_files(folder: Path) -> list[Path]:
    """Files of Python code beside the weights, sorted."""
    return sorted(Path(folder).glob(CODE))


def code_of(folder: Path) -> list[dict[str, str]]:
    """``[{name, blake2b}]`` of a checkpoint's code, by name.

    Raises:
        CheckpointError: a file is no regular one, leads out of the folder, cannot be read or is too long.
    """
    return [{"name": file.name, "blake2b": code_hash(file)} for file in code_files(folder)]


def _brought(folder: Path) -> dict[str, Any]:
    """``auto_map`` of the config: which class stands in which file."""
    told = read_config(folder).get("auto_map")
    return dict(told) if isinstance(told, dict) else {}


def check_brought(folder: Path) -> list[dict[str, str]]:
    """The code that a trusted checkpoint brings, as ``code_of``.

    Raises:
        CheckpointError: it brings no class for a causal language model, or one whose file lies elsewhere.
    """
    told, files = _brought(folder), code_of(folder)
    there = {one["name"] for one in files}
    if not isinstance(told.get(MODEL), str):
        raise CheckpointError(
            f"{folder}: 'trust_remote_code', but its config's 'auto_map' names no {MODEL}, so there is no code to run; "
            "leave 'trust_remote_code' out"
        )
    for key in (MODEL, "AutoConfig"):
        file = f"{str(told.get(key, told[MODEL])).rpartition('.')[0]}.py"
        if file not in there:
            raise CheckpointError(
                f"{folder}: the code of {key} is {shown(told[key])}, but {shown(file)} is not a file of this folder; "
                "put it there, and name it without a repository in 'auto_map'"
            )
    return files


def runs(folder: Path) -> bool:
    """Whether the step under way may run the code in ``folder``, and there is some to run."""
    allowed = trusted()
    if not allowed or MODEL not in _brought(folder):
        return False
    files = code_of(folder)
    return bool(files) and all(one["blake2b"] in allowed for one in files)


def check_runs(folder: Path) -> None:
    """Refuse a checkpoint that cannot do without code that is not trusted.

    Raises:
        CheckpointError: its class is none of transformers', and its code may not be run.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    kind = read_config(folder).get("model_type")
    if kind in CONFIG_MAPPING_NAMES or not _brought(folder) or runs(folder):
        return
    names = ", ".join(file.name for file in code_files(folder)) or "not in this folder"
    raise CheckpointError(
        f"{folder}: its class {shown(kind, 40)!r} is none of transformers', and the code that it brings ({names}) is "
        "not run unless a study says so; read it, and set 'trust_remote_code: true' at the base of your study"
    )


def check_ran(folder: Path, model: object) -> None:
    """Compare the code that made ``model`` with that in ``folder``: the library remembers a model class for each class
    of configs, so that of two checkpoints that differ in the model's code alone the first one's would serve both.

    Raises:
        CheckpointError: another checkpoint's code was taken.
    """
    file = getattr(sys.modules.get(type(model).__module__), "__file__", None)
    ours = {one["blake2b"] for one in code_of(folder)}
    if file is None or code_hash(Path(file)) not in ours:
        raise CheckpointError(
            f"{folder}: another checkpoint with the same class of configs but other code was loaded before in this "
            "process, and its code would be run; put the two in studies of their own"
        )
