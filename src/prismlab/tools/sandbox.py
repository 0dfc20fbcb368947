"""``prism sandbox check``: puts each level to its probes and says what holds, what does not, and what would help."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from prismlab.errors import SandboxError
from prismlab.tools.show import Table, print_tables
from prismlab.verify.sandbox.probe import SWITCH, examine, open_sandbox, refusal

WHAT = {
    "attempts": "files, processes, signals, network, namespaces of the host",
    "host untouched": "canaries on the host, looked at from there",
    "environment": "only these variables",
    "identity": "one neutral user and host name",
    "namespaces": "looked at from the host",
    "wall clock": "kept by the parent",
    "memory of a process": "address space",
    "memory of a group": "resident, watched",
    "processes": "of one program",
    "files": "of one program",
    "output": "of one program",
    "start": "a confined Python starts",
}


def examined(level: str) -> dict[str, Any]:
    """``{"level", "holds", "record" or None, "help"}`` of one level, or of a service by its address."""
    try:
        if level.startswith(("http://", "https://")):
            return {"level": level, "holds": True, "record": dict(open_sandbox(level).record), "help": ""}
        box, findings = examine(level)
    except SandboxError as error:
        return {"level": level, "holds": False, "record": None, "help": str(error)}
    box.close()
    failed = next((one for one in findings if not one.ok), None)
    helps = "" if failed is None else refusal(level, failed)
    return {"level": level, "holds": failed is None, "record": dict(box.record), "help": helps}


def _table(found: Mapping[str, Any], used: bool) -> Table:
    record = found["record"] or {}
    word = ("holds" if found["holds"] else "does not hold") + (f", in use ({SWITCH})" if used else "")
    probes = record.get("probes", {})
    rows = [
        (name, "no" if text.startswith("FAILED") else "yes", WHAT.get(name, ""), text) for name, text in probes.items()
    ]
    notes = [f"But: {text}." for text in record.get("not_enforced", ())] if found["holds"] else [found["help"]]
    if record.get("starts"):
        notes.insert(0, f"How programs start: {record['starts']}.")
    return Table(
        title=f"level {found['level']}: {word}",
        head=("probe", "holds", "what", "found"),
        rows=rows,
        words=4,
        note="\n".join(notes),
    )


def check(levels: Sequence[str], *, as_json: bool) -> None:
    """Print what holds.

    Args:
        levels: ``A``, ``B`` or addresses; none for A, B and the one in use.
        as_json: one JSON object, ``{"in_use", "levels": [...]}``.

    Raises:
        SandboxError: the level in use (or, where levels are named, one of them) does not hold.
    """
    in_use = os.environ.get(SWITCH) or "A"
    wanted = list(dict.fromkeys(levels or ("A", "B", in_use)))
    found = [examined(level) for level in wanted]
    needed = [one for one in found if levels or one["level"] == in_use]
    missing = next((one for one in needed if not one["holds"]), None)
    if as_json:
        print(json.dumps({"in_use": in_use, "levels": found}, indent=1))
    else:
        print_tables([_table(one, one["level"] == in_use) for one in found if one is not missing])
    if missing is not None:
        raise SandboxError(f"level {missing['level']} does not hold here: {missing['help']}")
