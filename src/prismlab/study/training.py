"""How a training treats its model: document boundaries, which weights move, context, memory, and losses that break."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from prismlab.study.rl import LoraSpec
from prismlab.study.spec import Count
from prismlab.study.world import Spec


class RopeSpec(Spec):
    """Rotary positions for a context longer than the model was made for. Give ``theta``, ``scaling`` or both."""

    theta: Annotated[float, Field(ge=1.0)] | None = None
    """Base of the frequencies; null for the model's own."""
    scaling: Literal["linear", "yarn"] | None = None
    """Kind of scaling, by transformers' names; null for none but the model's own."""
    factor: Annotated[float, Field(gt=1.0)] | None = None
    """How many times the model's own context; needed by ``scaling``."""

    @model_validator(mode="after")
    def _something(self) -> RopeSpec:
        if self.theta is None and self.scaling is None:
            raise ValueError("give 'theta' (a base of frequencies) or 'scaling' with its 'factor'")
        if (self.scaling is None) != (self.factor is None):
            raise ValueError("'scaling' and 'factor' go together: the kind, and how many times the context")
        return self


class ModelSide(Spec):
    """Fields of a training that say how its model is treated."""

    boundaries: Literal["respect", "ignore"] = "respect"
    """``respect``: no document of a row sees another (attention, positions, Mamba's state), and none is asked for the
    first token of the next. ``ignore``: a row is one text. The reference study does not state its own."""
    attention: Literal["auto", "sdpa", "eager", "flex_attention"] = "auto"
    """Implementation of attention, by transformers' names. ``auto`` is ``flex_attention`` where boundaries are
    respected on a GPU, since its block mask takes no memory by length squared, else the model's own."""
    train: Literal["all", "attention"] = "all"
    """``attention`` trains the projections of attention alone, for a long-context phase."""
    lora: LoraSpec | None = None
    """Train low-rank adapters in place of the weights, merged when a checkpoint is saved; null for the weights
    themselves. Needs peft."""
    rope: RopeSpec | None = None
    """Rotary positions for rows longer than the model's context; saved with the checkpoint."""
    allow_longer: bool = False
    """Train on rows longer than the model's context as it is; else, without ``rope``, they are refused."""
    checkpointing: Literal["none", "full", "selective"] = "none"
    """Activations that are computed anew in the backward pass: none; all within a layer; or (``selective``) all but
    attention and the products that are no wider than the model."""
    compile: bool = False
    """Compile each layer with torch.compile: minutes at the start, faster steps on a GPU."""
    context_parallel: Count = 1
    """Processes that share one row, by gathering keys and values; for dense classes alone. Divides ``nproc``."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """At a loss or gradient that is no number: ``stop``, or ``skip`` the step, which is recorded; after ten
    skipped steps in a row one more stops the run."""
    share_prefix: bool = True
    """Go on from a shorter training of this study that is the same up to there: with a constant rate up to the shorter
    one's end, with ``wsd`` up to its decay. The shorter one keeps its optimizer's state for it. False takes no part."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.lora is not None and self.train != "all":
            raise ValueError("'lora' and 'train: attention' exclude one another; name attention's layers in 'targets'")
        if self.context_parallel > 1 and self.attention != "auto":
            raise ValueError("'context_parallel' brings its own attention: leave 'attention' out")
        if self.lora is not None and self.context_parallel > 1:
            raise ValueError("'lora' and 'context_parallel' do not go together; set 'context_parallel: 1'")
        return self
