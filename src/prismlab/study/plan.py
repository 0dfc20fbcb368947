"""From a study to its steps: one method for each kind, configurations exactly as docs/architecture.md has them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from prismlab.errors import SpecError
from prismlab.seeds import derive_seed
from prismlab.study.analyses import ANALYSES, gate_step, thresholds
from prismlab.study.arms import infer_arms
from prismlab.study.checkpoints import MergeSpec, RLSpec, TrainSpec
from prismlab.study.content import FileHashes
from prismlab.study.explain import problem
from prismlab.study.load import LoadedStudy
from prismlab.study.pairs import evaluated, stopping
from prismlab.study.running import HOW
from prismlab.study.series import owner, prefixes
from prismlab.study.spec import EvaluationSpec
from prismlab.study.steps import Plan, Step, canonical, entries_of, stage_of
from prismlab.study.suites import SUITE_FILES, TASK_FILES, bare

MACHINE_TEXT = ("web", "code-text", "chat")
"""Micro domains whose text is found on the machine, so that its hash belongs to the fingerprint."""
_CLAIMS_READ = ("evaluation", "weights", "direction", "cka", "behaviour", "trajectory", "landscape", "frontier")


def _json(spec: BaseModel) -> dict[str, Any]:
    return spec.model_dump(mode="json", by_alias=True)


class Builder:
    """Collects the steps of one study, seed by seed."""

    def __init__(
        self, loaded: LoadedStudy, threads: int, hashes: FileHashes, machine_text: Callable[[], str] | None
    ) -> None:
        self.loaded = loaded
        self.study = loaded.study
        self.threads = threads
        self.hashes = hashes
        self.steps: dict[str, Step] = {}
        self.prefixes = prefixes(loaded.study)
        self._machine_text: Callable[[], str] | None = machine_text
        self._text = ""
        self._content: dict[str, list[dict[str, str]]] = {}

    def add(
        self,
        kind: str,
        name: str,
        seed: int | None,
        config: Mapping[str, Any],
        *,
        seed_name: str | None = None,
        step_name: str | None = None,
        **rest: Any,
    ) -> str:
        """Add a step once and return its id. ``seed_name``: what its random numbers depend on, if not its name."""
        step_id = f"{kind}/{step_name or name}" + ("" if seed is None else f"/s{seed}")
        if step_id not in self.steps:
            derived = derive_seed(kind, seed_name or name, "" if seed is None else seed)
            self.steps[step_id] = Step(
                kind=kind,
                id=step_id,
                name=name,
                seed=seed,
                # Sorted keys: equal fingerprints must mean equal configurations, order included.
                config=json.loads(canonical({**config, "seed": derived})),
                threads=self.threads,
                **stage_of(kind),
                **rest,
            )
        return step_id

    def files_of(self, section: str, name: str) -> Sequence[Path]:
        return self.loaded.files.get(f"{section}.{name}", ())

    def _listing(self, section: str, name: str) -> list[dict[str, str]]:
        key = f"{section}.{name}"
        if key not in self._content:
            self._content[key] = self.hashes.listing(self.files_of(section, name))
        return self._content[key]

    def data(self, sources: Iterable[str] | None, tasks: Iterable[str] | None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Config keys and paths of the sources and tasks that a step reads.

        In the configuration ``files`` of a spec holds names without folders; the paths travel apart from it.
        """
        config: dict[str, Any] = {"micro": _json(self.study.micro), "content": {}}
        paths: dict[str, list[str]] = {}
        groups = {"sources": sources, "tasks": tasks}
        for section, names in groups.items():
            if names is None:
                continue
            specs = {name: _json(getattr(self.study, section)[name]) for name in names}
            for name, spec in specs.items():
                if spec["files"] is not None:
                    config["content"][name] = self._listing(section, name)
                    spec["files"] = [file.name for file in self.files_of(section, name)]
                    paths[name] = [str(file) for file in self.files_of(section, name)]
            config[section] = specs
        if any(
            spec["micro"] and spec["micro"]["domain"] in MACHINE_TEXT for spec in config.get("sources", {}).values()
        ):
            config["machine_text"] = self._text_hash()
        return config, {"paths": paths}

    def _text_hash(self) -> str:
        if not self._text:
            if self._machine_text is None:
                from prismlab.micro.text import text_hash

                self._machine_text = text_hash
            self._text = self._machine_text()
        return self._text

    def base(self, name: str, seed: int) -> str:
        spec = _json(self.study.bases[name])
        # Where no code is trusted, a base is what it was before that could be said.
        spec |= {} if spec.pop("trust_remote_code") is False else {"trust_remote_code": True}
        facts, code = {"checkpoint": name}, self.study.bases[name].trust_remote_code
        if spec["checkpoint"] is None:
            return self.add("base", name, seed, {"spec": spec, "content": None}, facts=facts)
        folders = self.files_of("bases", name)
        if folders:
            # Where a folder lies is no part of what it holds: the stage finds it in config["files"]["checkpoint"].
            config = {"spec": {**spec, "checkpoint": "."}, "content": self.hashes.checkpoint(folders[0], code=code)}
            return self.add("base", name, None, config, facts=facts, paths={"checkpoint": [str(folders[0])]})
        hub_id, _, revision = str(spec["checkpoint"]).partition("@")
        if code and not re.fullmatch("[0-9a-f]{40}", revision):
            # What was read and trusted is the code of one commit; a branch may hold other code tomorrow.
            wanted = f"the commit whose code was read: '{hub_id}@' and 40 hexadecimal digits"
            raise SpecError(problem(f"bases.{name}.trust_remote_code", "no commit in 'checkpoint'", wanted))
        content = {"id": hub_id, "revision": revision or "main"}
        return self.add("base", name, None, {"spec": spec, "content": content}, facts=facts)

    def _items(self) -> dict[str, int]:
        """Tasks whose items are looked for in sources, and how many of a generated one."""
        asked, evaluations = self.study.decontaminate, self.study.evaluations
        if asked is None:
            return {}
        named: Sequence[str] = asked.evaluations or ()
        if asked.evaluations is None and not asked.tasks:
            named = list(evaluations)
        tasks: list[str] = [task for name in named for task in evaluations[name].tasks]
        items: dict[str, int] = dict.fromkeys([*tasks, *(asked.tasks or [])], 0)
        for spec in evaluations.values():
            items |= {task: max(items[task], spec.items) for task in spec.tasks if task in items}
        return {task: most or EvaluationSpec(tasks=[task]).items for task, most in items.items()}

    def clean(self, name: str, seed: int) -> str | None:
        """The step that cleans a source, or None where it is read as it is."""
        spec, asked, items = self.study.sources[name], self.study.decontaminate, self._items()
        if not spec.cleaned and not items:
            return None
        data, paths = self.data([name], items or None)
        given: dict[str, Any] | None = None
        if asked is not None and items:
            given = {"n": asked.n, "action": asked.action, "allow": asked.allow, "tasks": items}
        config = {"source": name, "template": self.study.template, "decontaminate": given, **data}
        # What is generated depends on the seed; files and hub data sets are the same for all.
        one = seed if spec.micro is not None else None
        return self.add("clean", name, one, config, facts={"source": name}, **paths)

    def cleaned(self, names: Iterable[str], seed: int) -> dict[str, str]:
        """Inputs of a step that reads sources: those of them that are cleaned first."""
        steps = {name: self.clean(name, seed) for name in names}
        return {name: step for name, step in steps.items() if step is not None}

    def corpus(self, spec: TrainSpec, seed: int) -> str:
        mixture = self.study.mixtures[spec.mixture]
        tokenizer = self.study.tokenizer or next(iter(self.study.bases))
        data, paths = self.data(mixture.names, None)
        rows, sizes = spec.steps * spec.rows, mixture.tokens_in_source or {}
        config = {
            "mixture": spec.mixture,
            "weights": self.study.shares(spec.mixture),
            "max_epochs": mixture.max_epochs,
            "tokens_in_source": {name: size for name, size in sizes.items() if name in mixture.names},
            "packing": _json(spec.packing),
            "rows": rows,
            "seq_len": spec.seq_len,
            "heldout": self.study.heldout,
            "template": self.study.template,
            **data,
        }
        # The seed is the mixture's: arms that train on one mixture see the same documents in the same order.
        return self.add(
            "corpus",
            spec.mixture,
            seed,
            config,
            step_name="-".join(filter(None, [spec.mixture, f"{rows}x{spec.seq_len}", spec.packing.label])),
            inputs={"tokenizer": self.base(tokenizer, seed), **self.cleaned(mixture.names, seed)},
            facts={"mixture": spec.mixture},
            **paths,
        )

    def checkpoint(self, name: str, seed: int) -> str:
        """The step that makes a base or a checkpoint, after those it needs."""
        if name in self.study.bases:
            return self.base(name, seed)
        if owner(name) != name:
            inputs = {"run": self.checkpoint(owner(name), seed)}
            step = int(name.partition("@")[2])
            return self.add("snapshot", name, seed, {"step": step}, inputs=inputs, facts={"checkpoint": name})
        spec = self.study.checkpoints[name]
        if isinstance(spec, MergeSpec):
            inputs = {start: self.checkpoint(start, seed) for start in spec.weights}
            facts, waits = {"checkpoint": name}, self._gates(spec.weights, seed)
            return self.add("merge", name, seed, {"spec": _json(spec)}, inputs=inputs, facts=facts, waits=waits)
        start = self.checkpoint(spec.start, seed)
        facts = {"checkpoint": name, "start": spec.start, "stage": spec.stage}
        waits = self._gates([spec.start], seed)
        if isinstance(spec, TrainSpec):
            config, more = self._training(spec)
            inputs = {"start": start, "corpus": self.corpus(spec, seed), **self._shared(name, config, seed)}
            if spec.monitor is not None:
                inputs |= self.cleaned(spec.monitor.heldout, seed)
            nproc = spec.nproc if spec.launch == "torchrun" else 0
            facts["mixture"] = spec.mixture
            return self.add("train", name, seed, config, inputs=inputs, facts=facts, waits=waits, nproc=nproc, **more)
        config = {"spec": _json(spec), "template": self.study.template, **self._measured(spec)}
        inputs = {"start": start, "prompts": self.prompts(spec, seed)}
        facts["prompts"] = spec.prompts
        nproc = spec.nproc if spec.launch == "torchrun" else 0
        paths = self.served(spec.server or (spec.vllm.server if spec.vllm else None))
        return self.add("rl", name, seed, config, inputs=inputs, facts=facts, waits=waits, nproc=nproc, paths=paths)

    def _shared(self, name: str, config: dict[str, Any], seed: int) -> dict[str, str]:
        """The shorter training that this one goes on from; where it does, and where others do, is put in ``config``."""
        for shorter, step in self.prefixes.values():
            if shorter == name:
                config["branch"] = step
        if name not in self.prefixes:
            return {}
        shorter, step = self.prefixes[name]
        config["prefix"] = {"step": step}
        return {"prefix": self.checkpoint(shorter, seed)}

    def _gates(self, starts: Iterable[str], seed: int) -> tuple[str, ...]:
        """The gates that may stop what begins from these checkpoints."""
        return tuple(gate_step(self, gate, start, seed) for start in starts for gate in stopping(self.study, start))

    def _training(self, spec: TrainSpec) -> tuple[dict[str, Any], dict[str, Any]]:
        """Configuration of a training, and what travels beside it: how it is carried out, files of held-out text."""
        whole = _json(spec)
        how = {key: whole.pop(key) for key in HOW}
        config = {"stage": spec.stage, "spec": whole, **self._measured(spec)}
        if spec.monitor is None:
            return config, {"how": how}
        data, paths = self.data(spec.monitor.heldout, None)
        return {**config, "heldout": self.study.heldout, "template": self.study.template, **data}, {"how": how, **paths}

    def _measured(self, spec: TrainSpec | RLSpec) -> dict[str, Any]:
        """What a run needs that measures its snapshots itself: the thresholds of the study's trajectories."""
        return {} if spec.keep_snapshots or not spec.snapshots else {"thresholds": thresholds(self.study)}

    def scoring(self, name: str, seed: int) -> str:
        spec = self.study.scorings[name]
        data, paths = self.data(None, spec.tasks)
        config = {"spec": _json(spec), "template": self.study.template, **data}
        inputs = {"scorer": self.checkpoint(spec.by, seed)}
        paths["paths"] |= self.served(spec.server)
        return self.add("scoring", name, seed, config, inputs=inputs, facts={"checkpoint": spec.by}, **paths)

    def served(self, name: str | None) -> dict[str, list[str]]:
        """Where a server is reached: travels with the paths, since no fingerprint depends on an address."""
        return {} if name is None else {"server": [self.study.run.servers[name]]}

    def prompts(self, rl: RLSpec, seed: int) -> str:
        return self.prompt_set(rl.prompts, seed)

    def prompt_set(self, name: str, seed: int) -> str:
        spec = self.study.prompts[name]
        config = {"spec": _json(spec), "samples": self.study.scorings[spec.scoring].samples}
        asked, items, paths = self.study.decontaminate, self._items(), dict[str, Any]()
        if asked is not None and items:
            data, paths = self.data(None, items)
            given = {"n": asked.n, "action": asked.action, "allow": asked.allow, "tasks": items}
            config = {**config, "decontaminate": given, **data}
        return self.add("prompts", name, seed, config, inputs={"scoring": self.scoring(spec.scoring, seed)}, **paths)

    def evaluation(self, name: str, checkpoint: str, seed: int) -> str:
        spec = self.study.evaluations[name]
        data, paths = self.data(spec.text, spec.tasks)
        paths["paths"] |= self.served(spec.server)
        files = self.files_of("evaluations", name)
        if spec.suite is not None:
            data["content"][SUITE_FILES] = self._listing("evaluations", name)
            paths["paths"][SUITE_FILES] = [str(file) for file in files]
            if included := self.files_of("evaluations", f"{name}.include"):
                data["content"][TASK_FILES] = self._listing("evaluations", f"{name}.include")
                paths["paths"][TASK_FILES] = [str(file) for file in included]
        config = {
            # Which checkpoints are evaluated changes nothing about any one of them.
            "spec": {**_json(spec), "checkpoints": None, "suite": bare(spec.suite, files)},
            "heldout": self.study.heldout,
            "template": self.study.template,
            "name": name,
            **data,
        }
        # The seed is the evaluation's, so that every checkpoint is sampled with the same random numbers.
        return self.add(
            "evaluation",
            name,
            seed,
            config,
            step_name=f"{name}@{checkpoint}",
            inputs={"checkpoint": self.checkpoint(checkpoint, seed), **self.cleaned(spec.text, seed)},
            facts={"checkpoint": checkpoint},
            **paths,
        )

    def one_seed(self, seed: int) -> None:
        """Every step of one seed, in the order in which a reader would tell the story."""
        for name in self.study.checkpoints:
            self.checkpoint(name, seed)
        for name in self.study.prompts:
            self.prompt_set(name, seed)
        for name in self.study.scorings:
            self.scoring(name, seed)
        for name in self.study.evaluations:
            for checkpoint in evaluated(self.study, name):
                self.evaluation(name, checkpoint, seed)
        for plan_analysis in ANALYSES:
            plan_analysis(self, seed)

    def ending(self, arms: Mapping[str, str]) -> None:
        """The ledger of claims over all seeds, and the report over everything."""
        # How many steps run at a time decides nothing, so it must not make a new ledger.
        study = {**_json(self.study), "run": {"threads": self.threads}}
        read = [step for step in self.steps.values() if step.kind in _CLAIMS_READ]
        for kind, steps in (("claims", read), ("report", None)):
            chosen = list(self.steps.values()) if steps is None else steps
            config = {"study": study, "arms": dict(arms), "entries": entries_of(chosen)}
            self.add(kind, self.study.name, None, config, inputs={step.id: step.id for step in chosen})


def plan_cleaning(loaded: LoadedStudy, source: str) -> Step | None:
    """The step that cleans a source for the study's first seed; None where it is read as it is.

    Raises:
        SpecError: the study has no such source.
        DataError: a file cannot be read.
    """
    if source not in loaded.study.sources:
        raise SpecError(problem("sources", f"no source {source!r}", list(loaded.study.sources), source))
    builder = Builder(loaded, loaded.study.run.threads, FileHashes(), None)
    step = builder.clean(source, loaded.study.seeds[0])
    return None if step is None else builder.steps[step]


def plan_corpus(loaded: LoadedStudy, spec: TrainSpec) -> list[Step]:
    """The step that builds the corpus of a training, behind those that clean its sources, for the first seed.

    Raises:
        DataError: a file cannot be read.
    """
    builder = Builder(loaded, loaded.study.run.threads, FileHashes(), None)
    builder.corpus(spec, loaded.study.seeds[0])
    return [step for step in builder.steps.values() if step.kind in ("clean", "corpus")]


def plan_study(
    loaded: LoadedStudy,
    *,
    threads: int | None = None,
    hash_cache: Path | None = None,
    machine_text: Callable[[], str] | None = None,
) -> Plan:
    """The steps of a study for all its seeds, in topological order.

    Args:
        loaded: a study that ``load_study`` has checked.
        threads: CPU threads a step, where not the study's own ``run.threads``; part of every fingerprint.
        hash_cache: JSON file that remembers content hashes of the files the study reads.
        machine_text: gives the hash of the text found on this machine; by default that of ``prismlab.micro.text``.

    Raises:
        DataError: a file cannot be read.
    """
    hashes = FileHashes(hash_cache)
    builder = Builder(loaded, threads or loaded.study.run.threads, hashes, machine_text)
    for seed in loaded.study.seeds:
        builder.one_seed(seed)
    arms = infer_arms(loaded.study)
    builder.ending(arms)
    hashes.save()
    return Plan(name=loaded.study.name, steps=list(builder.steps.values()), arms=arms)
