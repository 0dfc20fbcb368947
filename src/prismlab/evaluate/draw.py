"""What is sampled of tasks: the items and the settings, the same for every checkpoint; shared by stages that sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prismlab.data.items import Item, load_items
from prismlab.model.generate import Sampler, SamplingSettings, TransformersSampler
from prismlab.run.step import Json, Progress
from prismlab.score import SampleRow, score_items
from prismlab.seeds import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def files_of(config: Mapping[str, Json], name: str) -> list[Path] | None:
    """Paths of a source or task that comes from files; None for one that does not."""
    paths = config.get("files", {}).get(name)
    return None if paths is None else [Path(path) for path in paths]


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Items and how they are answered."""

    items: tuple[Item, ...]
    n: int
    """Samples an item."""
    settings: SamplingSettings
    seed: int
    """With an item's task and id it names the item's random numbers."""
    template: str

    @property
    def samples(self) -> int:
        """Samples in all."""
        return len(self.items) * self.n

    def rows(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        progress: Progress | None = None,
        sampler: Sampler | None = None,
    ) -> list[SampleRow]:
        """Verified samples of every item, in order; answers are judged leniently (see the stage ``evaluation``).

        ``sampler`` draws them elsewhere; None samples ``model`` in this process.

        Raises:
            StageError: a prompt fills the model's positions, or its logits are not finite.
            SandboxError: a verifier runs programs.
        """
        sampler = sampler or TransformersSampler(model, tokenizer)
        return score_items(
            sampler, tokenizer, self.items, self.n, self.settings, self.seed, self.template, False, progress
        )


def draw_of(config: Mapping[str, Json]) -> Draw:
    """What a stage's config asks for: ``spec`` (as of an evaluation), ``tasks``, ``micro``, ``template``, ``seed``.

    Raises:
        DataError: a task is missing or broken, or has too few items.
        MissingExtra: a hub task without the package ``datasets``.
    """
    spec = config["spec"]
    items: list[Item] = []
    for name in spec["tasks"]:
        task, files = config["tasks"][name], files_of(config, name)
        seed = derive_seed(config["seed"], "items", name)
        items += load_items(name, task, config["micro"], split="test", n=int(spec["items"]), files=files, seed=seed)
    settings = SamplingSettings(
        max_new_tokens=int(spec["max_new_tokens"]),
        temperature=float(spec["temperature"]),
        top_p=float(spec["top_p"]),
    )
    return Draw(
        items=tuple(items),
        n=int(spec["samples"]),
        settings=settings,
        seed=derive_seed(config["seed"], "samples"),
        template=config["template"],
    )
