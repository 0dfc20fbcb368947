"""What no single field can tell: that every name refers to something, and that nothing needs itself."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prismlab.study.checkpoints import CheckpointSpec, MergeSpec, RLSpec, TrainSpec
from prismlab.study.content import FileHashes
from prismlab.study.explain import problem
from prismlab.study.fits import model_problems
from prismlab.study.rl import PromptSpec
from prismlab.study.series import owner, snapshot_problems
from prismlab.study.spec import MixtureSpec, SourceSpec, TaskSpec
from prismlab.study.study import Study

_LETTERS = r"\[(?=[MCS])M?C?S?\]"
_ARM = re.compile(
    rf"(base|((phase3|phase4|extend)>)?mid{_LETTERS}(@[1-9]\d*[kB])?)(>((rl|finetune){_LETTERS}|merge|extend))*$"
)
_ARM_RULE = (
    "'base', 'mid[MC]', 'mid[MC]>rl[MCS]', 'mid[MCS]@16k', 'extend>mid[MCS]' and the like: letters of M, C, S in order"
)


def starts_of(spec: CheckpointSpec) -> list[str]:
    """Names of the bases and checkpoints that a checkpoint is made of."""
    return list(spec.weights) if isinstance(spec, MergeSpec) else [spec.start]


def _refer(where: str, names: Iterable[str], known: Iterable[str], what: str) -> Iterator[str]:
    options = list(known)
    for name in names:
        if name not in options:
            yield problem(where, f"no {what} {name!r}", options, name)


def _once(where: str, names: Iterable[str]) -> Iterator[str]:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        yield f"{where}: {twice[0]!r} stands there twice and would count twice; name it once"


def _checkpoints(study: Study) -> Iterator[str]:
    known = [*study.bases, *study.checkpoints]
    for name, spec in study.checkpoints.items():
        here = f"checkpoints.{name}"
        if name in study.bases:
            yield f"{here}: a base has this name too; name one of them otherwise"
        if isinstance(spec, MergeSpec):
            yield from _refer(f"{here}.weights", spec.weights, known, "base or checkpoint")
            continue
        if owner(spec.start) != spec.start:
            yield from snapshot_problems(f"{here}.from", spec.start, study)
        else:
            yield from _refer(f"{here}.from", [spec.start], known, "base or checkpoint")
        if isinstance(spec, TrainSpec):
            yield from _refer(f"{here}.mixture", [spec.mixture], study.mixtures, "mixture")
            yield from _epochs(here, spec, study)
            if spec.monitor is not None:
                yield from _refer(f"{here}.monitor.heldout", spec.monitor.heldout, study.sources, "source")
                yield from _once(f"{here}.monitor.heldout", spec.monitor.heldout)
                for taken in {"start", "corpus", "prefix"}.intersection(spec.monitor.heldout):
                    yield f"{here}.monitor.heldout: {taken!r} is what the training's own input is called; rename it"
        else:
            yield from _refer(f"{here}.prompts", [spec.prompts], study.prompts, "prompt set")
            asked = [spec.server, spec.vllm.server if spec.vllm else None]
            yield from _refer(f"{here}.server", filter(None, asked), study.run.servers, "server in run:")


def _prompt_set(name: str, spec: PromptSpec, study: Study) -> Iterator[str]:
    here = f"prompts.{name}"
    yield from _once(f"{here}.tasks", spec.tasks)
    yield from _refer(f"{here}.scoring", [spec.scoring], study.scorings, "scoring")
    scoring = study.scorings.get(spec.scoring)
    if scoring is None:
        return
    yield from _refer(f"{here}.tasks", spec.tasks, scoring.tasks, f"task among those of scoring {spec.scoring!r}:")
    yield from _refer(f"{here}.overrides", spec.overrides, spec.tasks, "task among this prompt set's")
    yield from _refer(f"{here}.randomise", spec.randomise, spec.tasks, "task among this prompt set's")
    ranges = {"": (spec.min_correct, scoring.samples if spec.max_correct is None else spec.max_correct)}
    ranges |= {f".overrides.{task}": span for task, span in spec.overrides.items()}
    for key, (low, high) in ranges.items():
        if not 0 <= low <= high <= scoring.samples:
            yield problem(
                f"{here}{key}", f"{low} to {high} correct samples", f"0 <= least <= most <= {scoring.samples} (samples)"
            )


def _sampling(study: Study) -> Iterator[str]:
    everything = [*study.bases, *study.checkpoints]
    for name, spec in study.scorings.items():
        yield from _refer(f"scorings.{name}.by", [spec.by], everything, "base or checkpoint")
        yield from _refer(f"scorings.{name}.tasks", spec.tasks, study.tasks, "task")
        yield from _once(f"scorings.{name}.tasks", spec.tasks)
        yield from _refer(f"scorings.{name}.server", filter(None, [spec.server]), study.run.servers, "server in run:")
    for name, spec in study.prompts.items():
        yield from _prompt_set(name, spec, study)
    for name, spec in study.evaluations.items():
        here = f"evaluations.{name}"
        yield from _refer(f"{here}.tasks", spec.tasks, study.tasks, "task")
        yield from _refer(f"{here}.text", spec.text, study.sources, "source")
        yield from _refer(f"{here}.checkpoints", spec.checkpoints or [], everything, "base or checkpoint")
        yield from _refer(f"{here}.server", filter(None, [spec.server]), study.run.servers, "server in run:")
        yield from _once(f"{here}.tasks", spec.tasks)
        yield from _once(f"{here}.text", spec.text)
        for both in set(spec.tasks) & set(spec.text):
            if study.tasks.get(both) and study.tasks[both].files is not None:
                yield f"{here}: {both!r} is a task and a source, and each has files; name one of them otherwise"


def _analyses(study: Study) -> Iterator[str]:
    everything = [*study.bases, *study.checkpoints]
    analyses = study.analyses
    groups: dict[str, Sequence[Sequence[str]]] = {
        "weights.pairs": (analyses.weights and analyses.weights.pairs) or [],
        "cka.pairs": (analyses.cka and analyses.cka.pairs) or [],
        "direction.groups": (analyses.direction and analyses.direction.groups) or [],
        "landscape.triples": (analyses.landscape and analyses.landscape.triples) or [],
    }
    for key, rows in groups.items():
        for number, row in enumerate(rows):
            yield from _refer(f"analyses.{key}[{number}]", row, everything, "base or checkpoint")
            if key in ("direction.groups", "landscape.triples"):
                yield from _once(f"analyses.{key}[{number}]", row)
    if analyses.cka:
        yield from _refer("analyses.cka.sources", analyses.cka.sources, study.sources, "source")
        yield from _once("analyses.cka.sources", analyses.cka.sources)
    sampled = [name for name, spec in study.evaluations.items() if spec.tasks]
    for key, analysis in (("behaviour", analyses.behaviour), ("landscape", analyses.landscape)):
        if analysis:
            yield from _refer(f"analyses.{key}.evaluation", [analysis.evaluation], sampled, "evaluation with tasks")
    if analyses.frontier:
        runs = [name for name, spec in study.checkpoints.items() if isinstance(spec, RLSpec)]
        yield from _refer("analyses.frontier.checkpoints", analyses.frontier.checkpoints or [], runs, "RL checkpoint")
    if analyses.trajectory and analyses.trajectory.checkpoints is not None:
        yield from _refer(
            "analyses.trajectory.checkpoints",
            analyses.trajectory.checkpoints,
            [name for name, spec in study.checkpoints.items() if getattr(spec, "snapshots", 0) > 0],
            "checkpoint with 'snapshots' above 0:",
        )


def _epochs(here: str, spec: TrainSpec, study: Study) -> Iterator[str]:
    """Sources of stated size that a training would repeat too often: nothing need be read to know it."""
    mixture = study.mixtures.get(spec.mixture)
    if mixture is None or any(_mixture("", spec.mixture, mixture, study)):
        return
    shares = study.shares(spec.mixture)
    for source, size in (mixture.tokens_in_source or {}).items():
        epochs = spec.tokens * shares.get(source, 0.0) / size
        if epochs > mixture.max_epochs:
            yield (
                f"{here}: source {source!r} would be repeated {epochs:.3g} times; mixtures.{spec.mixture}.max_epochs "
                f"allows {mixture.max_epochs:g}: lower its weight or the steps, or raise it"
            )


def _mixture(here: str, name: str, mixture: MixtureSpec, study: Study) -> Iterator[str]:
    wrong = [
        *_refer(f"{here}.weights", mixture.weights, study.sources, "source"),
        *_refer(f"{here}.by_size", mixture.by_size, study.sources, "source"),
        *_refer(f"{here}.tokens_in_source", mixture.tokens_in_source or {}, study.sources, "source"),
    ]
    if not wrong:
        try:
            study.shares(name)
        except ValueError as error:
            wrong.append(f"{here}: {error}")
    yield from wrong


_INPUTS = ("tokenizer", "checkpoint")
"""Keys of inputs beside which those of cleaned sources stand, which are called like their sources."""


def _cleaning(study: Study) -> Iterator[str]:
    asked = study.decontaminate
    for name, spec in study.sources.items():
        if name in _INPUTS and (spec.cleaned or asked is not None):
            yield f"sources.{name}: a source that is cleaned cannot be called so; name it otherwise"
    if asked is None:
        return
    sampled = [name for name, spec in study.evaluations.items() if spec.tasks]
    yield from _refer("decontaminate.evaluations", asked.evaluations or [], sampled, "evaluation with tasks")
    yield from _refer("decontaminate.tasks", asked.tasks or [], study.tasks, "task")
    if not sampled and not asked.tasks:
        yield "decontaminate: no evaluation samples tasks, so there is no item to look for; name 'tasks'"
    for both in set(study.tasks) & set(study.sources):
        if study.tasks[both].files is not None and study.sources[both].files is not None:
            yield f"decontaminate: {both!r} is a task and a source, and each has files; name one of them otherwise"


def _gates(study: Study) -> Iterator[str]:
    sampled = [name for name, spec in study.evaluations.items() if spec.tasks or spec.suite]
    for name, spec in study.gates.items():
        here = f"gates.{name}"
        yield from _refer(f"{here}.evaluation", [spec.evaluation], sampled, "evaluation with tasks")
        evaluation = study.evaluations.get(spec.evaluation)
        if evaluation is None:
            continue
        everything = [*study.bases, *study.checkpoints]
        judged = evaluation.checkpoints or [
            one for one in everything if one not in study.bases or study.bases[one].arch is None
        ]
        what = f"checkpoint among those of evaluation {spec.evaluation!r}:"
        yield from _refer(f"{here}.reference", [spec.reference], judged, what)
        yield from _refer(f"{here}.checkpoints", spec.checkpoints or [], judged, what)
        yield from _refer(
            f"{here}.margins",
            spec.margins,
            evaluation.suite.names if evaluation.suite else evaluation.tasks,
            "task of its evaluation:",
        )
        if not set(judged if spec.checkpoints is None else spec.checkpoints) - {spec.reference}:
            yield f"{here}: no checkpoint is left to hold against {spec.reference!r}; name one in 'checkpoints'"
        for held in _above(study, spec.reference) if spec.action == "stop" else ():
            if held in (judged if spec.checkpoints is None else spec.checkpoints):
                yield f"{here}: {spec.reference!r} is made of {held!r}, which this gate may stop; take another"


def _above(study: Study, name: str) -> set[str]:
    """All checkpoints that one is made of; what a cycle or an unknown name leaves out is told elsewhere."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        spec = study.checkpoints.get(owner(waiting.pop()))
        new = [] if spec is None else [start for start in starts_of(spec) if start not in found]
        found.update(new)
        waiting += new
    return found


def _rest(study: Study) -> Iterator[str]:
    yield from _cleaning(study)
    if len(set(study.seeds)) < len(study.seeds):
        yield problem("seeds", f"{study.seeds} has a seed twice", "each seed once")
    if study.tokenizer is not None:
        yield from _refer("tokenizer", [study.tokenizer], study.bases, "base")
    for name, mixture in study.mixtures.items():
        yield from _mixture(f"mixtures.{name}", name, mixture, study)
    if study.claims.evaluation is not None:
        yield from _refer("claims.evaluation", [study.claims.evaluation], study.evaluations, "evaluation")
    for arm, name in study.claims.arms.items():
        if not _ARM.match(arm):
            yield problem(f"claims.arms.{arm}", "no arm is called so", _ARM_RULE)
        yield from _refer(f"claims.arms.{arm}", [name], [*study.bases, *study.checkpoints], "base or checkpoint")


def _needs(study: Study) -> dict[str, list[str]]:
    """What each checkpoint, prompt set and scoring is made of, as ``section.name``."""

    def checkpoint(name: str) -> str:
        return f"bases.{name}" if name in study.bases else f"checkpoints.{owner(name)}"

    needs: dict[str, list[str]] = {}
    for name, spec in study.checkpoints.items():
        needs[f"checkpoints.{name}"] = [checkpoint(start) for start in starts_of(spec)]
        if isinstance(spec, RLSpec):
            needs[f"checkpoints.{name}"].append(f"prompts.{spec.prompts}")
    needs |= {f"prompts.{name}": [f"scorings.{spec.scoring}"] for name, spec in study.prompts.items()}
    needs |= {f"scorings.{name}": [checkpoint(spec.by)] for name, spec in study.scorings.items()}
    return needs


def find_cycle(needs: Mapping[str, Sequence[str]]) -> list[str] | None:
    """A cycle, its first node repeated at the end, or None. Iterative, so that a long chain overflows nothing."""
    done: set[str] = set()
    for root in needs:
        path: list[str] = []
        stack: list[tuple[str, Iterator[str]]] = [(root, iter(needs[root]))] if root not in done else []
        path += [root] if stack else []
        while stack:
            following = next(stack[-1][1], None)
            if following is None:
                done.add(path.pop())
                stack.pop()
            elif following in path:
                return [*path[path.index(following) :], following]
            elif following not in done:
                path.append(following)
                stack.append((following, iter(needs.get(following, ()))))
    return None


def cross_problems(study: Study) -> list[str]:
    """Every broken reference and rule between parts of the study, two lines each; cycles only where names are right."""
    found = [*_checkpoints(study), *_sampling(study), *_analyses(study), *_rest(study), *_gates(study)]
    if not found and (cycle := find_cycle(_needs(study))):
        found.append(
            f"{cycle[0]}: a cycle, so nothing can come first: {' <- '.join(cycle)}; cut it at one 'from' or 'by'"
        )
    return found or list(model_problems(study))


@dataclass(frozen=True)
class _Rows:
    """Rows that a study reads for one purpose."""

    key: str
    """Where it stands in the study."""
    files: Sequence[Path]
    split: tuple[str, str | None, str] | None = None
    """A data set of the hub, its configuration and split, in place of files."""


def _rows(key: str, spec: TaskSpec | SourceSpec, files: Mapping[str, Sequence[Path]]) -> _Rows:
    """Rows of a task or a source; none of the micro world, which keeps its test items apart."""
    split = None if spec.hub is None else (spec.hub.id, spec.hub.config, spec.hub.split)
    return _Rows(key, files.get(key, ()) if spec.files is not None else (), split)


def _evaluated(study: Study, files: Mapping[str, Sequence[Path]]) -> Iterator[_Rows]:
    """Rows that are evaluated: of tasks, and of suites all but worked examples."""
    for name in dict.fromkeys(name for spec in study.evaluations.values() for name in spec.tasks):
        yield _rows(f"tasks.{name}", study.tasks[name], files)
    for name, spec in study.evaluations.items():
        if spec.suite is not None:
            chosen = spec.suite.suite.named(tuple(spec.suite.benchmarks))
            examples = {stem for one in chosen for stem in one.example_files}
            examples |= {Path(one.examples).name.partition(".")[0] for one in spec.suite.own.values() if one.examples}
            key = f"evaluations.{name}"
            judged = [file for file in files.get(key, ()) if file.name.partition(".")[0] not in examples]
            yield _Rows(f"{key}.suite", judged)


def _shared(one: _Rows, other: _Rows, hashes: FileHashes) -> str | None:
    """What two of them have in common: a split, a file, or a file's copy under another name; sizes are compared first.

    Raises:
        DataError: a file cannot be read.
    """
    if one.split is not None and one.split == other.split:
        return f"split {one.split[2]!r} of {one.split[0]}"
    for file in one.files:
        if file in other.files:
            return str(file)
    sizes: dict[int, list[Path]] = {}
    for file in other.files:
        sizes.setdefault(file.stat().st_size, []).append(file)
    for file in one.files:
        for copy in sizes.get(file.stat().st_size, ()) if file.stat().st_size else ():
            if hashes.of(file) == hashes.of(copy):
                return f"{file} and its copy {copy}"
    return None


def leaks(study: Study, files: Mapping[str, Sequence[Path]]) -> Iterator[str]:
    """What is evaluated and also trained on: rows of a task or suite that are candidates for RL prompts, too, or a
    source in a mixture.

    Only the micro world keeps its own test items apart. Files and hub datasets are what the study says they are, so the
    same file (by whatever path, or a copy of it), or the same split, on both sides means training on test items.

    Args:
        study: the study.
        files: as ``LoadedStudy.files``.

    Raises:
        DataError: a file cannot be read.
    """
    scored = dict.fromkeys(name for spec in study.scorings.values() for name in spec.tasks)
    mixed = dict.fromkeys(name for mixture in study.mixtures.values() for name in mixture.names)
    trained = [(_rows(f"tasks.{name}", study.tasks[name], files), "scored for RL prompts") for name in scored]
    trained += [(_rows(f"sources.{name}", study.sources[name], files), "trained on") for name in mixed]
    hashes = FileHashes()
    for rows in _evaluated(study, files):
        for other, how in trained:
            if shared := _shared(rows, other, hashes):
                yield (
                    f"{rows.key} is evaluated, and {other.key}, read from the same rows, is {how} ({shared}): "
                    "that trains on test items; give the two other files or splits"
                )
