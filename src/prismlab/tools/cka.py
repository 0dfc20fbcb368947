"""``prism cka``: how alike the hidden states of checkpoints are, layer by layer, on texts of the user's choice."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from prismlab.analyse.grams import MOST_INPUTS, States, load, save
from prismlab.analyse.similarity import FEWEST
from prismlab.errors import DataError, SpecError, shown
from prismlab.run.step import Progress
from prismlab.tools import show
from prismlab.tools.inputs import Texts, read_sets

if TYPE_CHECKING:
    from prismlab.analyse.states import Batch, Device, Dtype
    from prismlab.report.figures import Panel
    from prismlab.report.heat import HeatMap
    from prismlab.report.sections import Drawing

BATCHES = {"auto": "padded", "1": "one", "equal": "equal"}
"""How inputs are put in batches, by what the option is called."""
_HOW = (
    "CKA: 1 is equal up to rotation and scale. Smallest over layers 0 (the embedding) to the last. Plain and bootstrap "
    "estimates read too high where inputs are few and states wide; the debiased one does not."
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides the numbers, besides checkpoints and inputs."""

    max_tokens: int = 256
    resamples: int = 20
    resample_size: int = 100
    batch: str = "auto"
    device: str = "auto"
    dtype: str = "auto"
    cross: bool = False
    seed: int = 0

    def check(self, n: int) -> None:
        """Refuse what cannot be measured.

        Raises:
            SpecError: a value is out of its range.
        """
        if not FEWEST <= n <= MOST_INPUTS:
            raise SpecError(f"--n {n}: {FEWEST} to {MOST_INPUTS} inputs a set are possible")
        for name, value, least in (
            ("max-tokens", self.max_tokens, 1),
            ("resamples", self.resamples, 0),
            ("resample-size", self.resample_size, FEWEST),
        ):
            if value < least:
                raise SpecError(f"--{name} {value}: at least {least}")
        for name, given, known in (
            ("batch", self.batch, BATCHES),
            ("device", self.device, ("auto", "cpu", "cuda")),
            ("dtype", self.dtype, ("auto", "float32", "bfloat16", "float16")),
        ):
            if given not in known:
                raise SpecError(f"--{name} {shown(given, 40)}: one of {', '.join(known)}")


class Kept:
    """States of checkpoints below ``--out``, by what they depend on: content of the files, texts and settings.

    A run that was stopped finds what it had measured; a checkpoint or text that has changed is another key.
    """

    def __init__(self, out: Path | None, sets: Sequence[Texts], settings: Settings, device: str) -> None:
        from prismlab.analyse.grams import hash_texts
        from prismlab.study.content import FileHashes

        self._folder = None if out is None else out / "states"
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
        self._hashes = FileHashes(None if self._folder is None else self._folder / "hashes.json")
        self._inputs = [[one.name, hash_texts(one.texts)] for one in sets]
        self._how = [settings.max_tokens, BATCHES[settings.batch], settings.dtype, device]

    def place(self, checkpoint: Path) -> Path | None:
        """Where the states of a checkpoint lie or will lie; None where nothing is kept.

        Raises:
            DataError: a file of the checkpoint cannot be read.
        """
        if self._folder is None:
            return None
        listing = self._hashes.checkpoint(checkpoint.resolve())
        self._hashes.save()
        key = json.dumps([listing, self._inputs, self._how], sort_keys=True)
        return self._folder / hashlib.blake2b(key.encode(), digest_size=8).hexdigest()

    @staticmethod
    def find(place: Path | None, progress: Progress) -> States | None:
        """States measured before; what is damaged is said and measured anew."""
        if place is None or not place.is_dir():
            return None
        try:
            return load(place)
        except DataError as error:
            progress.note(f"{error}; they are measured again")
            return None

    @staticmethod
    def keep(place: Path | None, states: States) -> None:
        """Write states aside and put them in their place: half of them never lie there."""
        if place is None:
            return
        part = place.with_name(f"{place.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        save(states, part)
        shutil.rmtree(place, ignore_errors=True)
        part.rename(place)


def measure_all(
    folders: Mapping[str, Path], sets: Sequence[Texts], settings: Settings, out: Path | None, progress: Progress
) -> tuple[dict[str, States], list[str]]:
    """States of every checkpoint, and the names of those that were found below ``out``."""
    from prismlab.analyse.states import choose_device, measure
    from prismlab.model.checkpoint import check_loadable, load_tokenizer

    # All of them before the first forward pass: the last one's fault shall not cost the passes of the others.
    for folder in folders.values():
        check_loadable(folder)
        load_tokenizer(folder)
    device = choose_device(cast("Device", settings.device)).type
    kept = Kept(out, sets, settings, device)
    progress.start(None, "checkpoints read")
    places = {name: kept.place(folder) for name, folder in folders.items()}
    states = {name: kept.find(place, progress) for name, place in places.items()}
    found = [name for name, one in states.items() if one is not None]
    progress.start((len(folders) - len(found)) * sum(len(one.texts) for one in sets), "inputs")
    for name, folder in folders.items():
        if states[name] is None:
            states[name] = measure(
                folder,
                {one.name: one.texts for one in sets},
                max_tokens=settings.max_tokens,
                batch=cast("Batch", BATCHES[settings.batch]),
                dtype=cast("Dtype", settings.dtype),
                device=cast("Device", device),
                progress=progress,
            )
            kept.keep(places[name], cast(States, states[name]))
    return cast(dict[str, States], states), found


def cka(
    checkpoints: Sequence[str],
    *,
    inputs: Sequence[Path] = (),
    field: str = "text",
    n: int = 200,
    settings: Settings | None = None,
    out: Path | None = None,
    as_json: bool = False,
) -> dict[str, Any]:
    """Compare checkpoints, show what was found and write it below ``out``.

    Args:
        checkpoints: two or more folders or model ids (``@revision`` allowed); every two of them are compared.
        inputs: files of texts (``.txt``, ``.jsonl``, ``.parquet``, ``.gz``), a set each; none for English and Python
            text of the standard library.
        field: of rows.
        n: inputs a set.
        settings: see ``Settings``.
        out: folder for ``cka.json``, ``cka.html``, ``layers.parquet``, ``cross.parquet`` and ``states/``, which lets a
            run that was stopped go on.
        as_json: the record on standard output instead of the table.

    Returns:
        The record: what ``analyse.cka.compare_all`` returns, and what it was made from.

    Raises:
        SpecError: an option is out of range, or there are fewer than two checkpoints.
        CheckpointError: a checkpoint cannot be had or loaded, or its states are not finite.
        DataError: a file of inputs cannot be read, or has too few texts.
        StageError: no GPU where one is asked for, or an input without tokens.
    """
    from prismlab.model.hub import resolve

    settings = settings or Settings()
    settings.check(n)
    if len(checkpoints) < 2:
        raise SpecError("cka: name two or more checkpoints")
    show.check_out(out)
    folders = dict(zip(show.labels(checkpoints), map(resolve, checkpoints), strict=True))
    sets = read_sets(inputs, field, n, settings.seed, FEWEST)
    with show.progress("cka") as progress:
        states, found = measure_all(folders, sets, settings, out, progress)
        compared, seconds = _compared(states, settings, progress)
    record = {
        "tool": "cka",
        "checkpoints": [
            {"name": name, "folder": str(folder), "measured_before": name in found, **_facts(states[name])}
            for name, folder in folders.items()
        ],
        "inputs": [_input(one, n) for one in sets],
        "settings": {**asdict(settings), "n": n},
        "seconds_analysis": seconds,
        **compared,
    }
    _show(record, bool(inputs), out, as_json)
    return record


def _show(record: Mapping[str, Any], given: bool, out: Path | None, as_json: bool) -> None:
    show.emit(
        "cka",
        record,
        [_table(record)],
        title="Representations: " + ", ".join(record["names"]),
        notes=_notes(record, given),
        figures=lambda: _drawings(record),
        parquet=lambda: _parquet(record),
        out=out,
        as_json=as_json,
    )


def _compared(states: Mapping[str, States], settings: Settings, progress: Progress) -> tuple[dict[str, Any], float]:
    from prismlab.analyse.cka import compare_all

    first = next(iter(states.values()))
    start = time.perf_counter()
    progress.start(len(first.sets) * (1 + max(one.layers for one in states.values())), "layers")
    found = compare_all(
        states,
        resamples=settings.resamples,
        resample_size=settings.resample_size,
        seed=settings.seed,
        with_cross=settings.cross,
        progress=progress,
    )
    return found, time.perf_counter() - start


def _facts(states: States) -> dict[str, Any]:
    tokens = {name: one.tokens for name, one in states.sets.items()}
    return {**{key: value for key, value in vars(states).items() if key != "sets"}, "tokens": tokens}


def _input(one: Texts, asked: int) -> dict[str, Any]:
    facts = {key: value for key, value in vars(one).items() if key != "texts"}
    return {**facts, "inputs": len(one.texts), "asked": asked}


def _cell(value: float | None) -> str:
    """A similarity with as many digits as tell how far it is from 1."""
    if value is None:
        return show.NONE
    gap = 1.0 - value
    places = 8 if gap < 1e-7 else min(8, max(4, 1 - math.floor(math.log10(gap))))
    return f"{value:.{places}f}".replace("-", "\u2212")


def _spread(row: Mapping[str, Any]) -> str:
    if row.get("mean") is None or row.get("std") is None:
        return show.NONE
    return f"{_cell(row['mean'])} ± {show.digits(row['std'], 2)}"


def _table(record: Mapping[str, Any]) -> show.Table:
    rows: list[list[str]] = []
    for pair in record["pairs"]:
        for name, one in pair["sets"].items():
            least = next((row for row in one["layers"] if row["layer"] == one["min_layer"]), {})
            layer = show.NONE if one["min_layer"] is None else f"{one['min_layer']} of {len(one['layers']) - 1}"
            texts = [_cell(one["min"]), layer, _cell(one["debiased_min"]), _spread(least), _cell(one["final"])]
            rows.append([f"{pair['old']} → {pair['new']}", name, str(one["inputs"]), *texts])
    head = [
        "checkpoints",
        "set",
        "inputs",
        "smallest CKA",
        "at layer",
        "debiased, smallest",
        "bootstrap there",
        "last layer",
    ]
    return show.Table(head=head, rows=rows, words=2, note=_HOW)


def _notes(record: Mapping[str, Any], given: bool) -> list[str]:
    notes: list[str] = []
    if not given:
        notes.append("No --inputs: English and Python text that comes with this Python; take texts of your own field.")
    for one in record["inputs"]:
        if one["inputs"] < one["asked"]:
            notes.append(f"{one['name']}: {one['inputs']} different texts, where {one['asked']} were asked for")
        if one["blank"] or one["repeated"]:
            notes.append(f"{one['name']}: passed over {one['blank']} blank and {one['repeated']} repeated texts")
    for pair in record["pairs"]:
        for name, one in pair["sets"].items():
            where = f"{pair['old']} → {pair['new']}, {name}"
            if one["differing"]["count"]:
                first = ", ".join(map(str, one["differing"]["first"][:5]))
                counts = f"{one['differing']['count']} of {one['inputs']}"
                notes.append(f"{where}: the tokenizers cut {counts} inputs differently (first, from 0: {first})")
            if one["reason"]:
                crossed = "; every layer against every layer: --out or --json" if one["cross"] else ""
                notes.append(f"{where}: {one['reason']}{crossed}")
    before = [one["name"] for one in record["checkpoints"] if one["measured_before"]]
    if before:
        notes.append(f"measured before, found in states/: {', '.join(before)}")
    return notes


def _parquet(record: Mapping[str, Any]) -> dict[str, Any]:
    from prismlab.analyse.cka import tables

    layers, crossed = tables(record)
    return {"layers": layers, **({} if crossed is None else {"cross": crossed})}


def _drawings(record: Mapping[str, Any]) -> list[Drawing]:
    from prismlab.report import figures
    from prismlab.report.heat import heat_maps
    from prismlab.report.sections import Drawing

    sets = [one["name"] for one in record["inputs"]]
    how = (
        "Similarity of hidden states, layer by layer; layer 0 is the embedding. Right: how far it is from 1. The "
        "bootstrap's mean and the debiased estimator are switched on in the legend."
    )
    panels = [_panel(record, name, log) for name in sets for log in (False, True)]
    drawings = [Drawing("cka", figures.draw(panels, columns=2, height=310, digits=".5f"), how, "CKA by layer")]
    if len(record["names"]) > 2:
        text = "Smallest plain CKA over the layers of every two checkpoints."
        drawings.append(Drawing("pairs", heat_maps([_square(record, n) for n in sets]), text, "Smallest CKA by pair"))
    crossed = _crossed(record)
    if crossed:
        text = "Every layer of one checkpoint (rows) against every layer of the other (columns), plain CKA."
        drawings.append(Drawing("cross", heat_maps(crossed), text, "CKA between all layers"))
    return [one for one in drawings if one.figure["data"]]


def _panel(record: Mapping[str, Any], name: str, log: bool) -> Panel:
    from prismlab.report.figures import SPARE_COLOURS, Line, Panel, layer_ticks

    lines: list[Line] = []
    kinds = (("cka", "solid", ""), ("mean", "dash", ", bootstrap"), ("debiased", "dot", ", debiased"))
    for k, pair in enumerate(record["pairs"]):
        for key, dash, suffix in kinds:
            rows = [(float(r["layer"]), r[key]) for r in pair["sets"][name]["layers"] if r[key] is not None]
            # A log axis has no place for states that are equal, or more alike than an estimate can say.
            rows = [(layer, 1.0 - value) for layer, value in rows if value < 1.0 - 1e-12] if log else rows
            label, tint = f"{pair['old']} → {pair['new']}{suffix}", SPARE_COLOURS[k % len(SPARE_COLOURS)]
            line = Line(name=label, colour=tint, seeds={0: rows}, dash=dash, shown=not suffix, markers=not suffix)
            lines.append(line)
    y = "1 − CKA, log scale" if log else "linear CKA"
    return Panel(title=f"inputs: {name}", x="layer", y=y, lines=lines, log_y=log, x_ticks=layer_ticks(lines))


def _square(record: Mapping[str, Any], name: str) -> HeatMap:
    from prismlab.report.heat import NEAR_ONE, HeatMap

    known = {(one, one): 1.0 for one in record["names"]}
    for pair in record["pairs"]:
        known[pair["old"], pair["new"]] = known[pair["new"], pair["old"]] = pair["sets"][name]["min"]
    values = [[known[row, column] for column in record["names"]] for row in record["names"]]
    return HeatMap(title=f"inputs: {name}", names=record["names"], values=values, look=NEAR_ONE)


def _crossed(record: Mapping[str, Any]) -> list[HeatMap]:
    from prismlab.report.heat import NEAR_ONE, HeatMap

    maps: list[HeatMap] = []
    for pair in record["pairs"]:
        for name, one in pair["sets"].items():
            if one["cross"]:
                values = one["cross"]["cka"]
                rows, columns = ([str(n) for n in range(size)] for size in (len(values), len(values[0])))
                title = f"{pair['old']} → {pair['new']}, inputs: {name}"
                maps.append(HeatMap(title=title, names=rows, columns=columns, values=values, look=NEAR_ONE))
    return maps
