"""The policy in one piece, for what is written of it: checkpoint, master weights, snapshots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from prismlab.errors import StageError
from prismlab.model.checkpoint import load_model


class Whole:
    """The policy itself or, where its weights are spread over processes so that none has them, a copy of it.

    Args:
        model: the policy.
        start: the checkpoint that it starts from.
        spread: whether its weights are spread (``sharding``).
        chief: whether this is the first process, in whose memory the copy lies.
    """

    def __init__(self, model: Any, start: Path, spread: bool, chief: bool) -> None:
        self._spread = spread
        self.model: Any = model
        """What is written; None in every process but the first where weights are spread."""
        if spread:
            self.model = load_model(start, "float32", torch.device("cpu")) if chief else None

    def gather(self, trainer: Any) -> None:
        """Bring the copy up to date; called by all processes together.

        Raises:
            StageError: what the library gathered are not the weights of this model.
        """
        if not self._spread:
            return
        state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        if self.model is None:
            return
        own = self.model.state_dict()
        given = {own[name].data_ptr() for name in state if name in own}
        # Of tensors that are tied the library may give one alone.
        missing = [name for name, tensor in own.items() if name not in state and tensor.data_ptr() not in given]
        odd = sorted(set(state) - set(own))
        wrong = [name for name in state if name in own and state[name].shape != own[name].shape]
        if missing or odd or wrong:
            name = (missing or odd or wrong)[0]
            raise StageError(
                f"the weights gathered from all processes are not the model's: {name} is missing, one too many or of "
                "another shape; take 'sharding: none', or the other kind of sharding"
            )
        self.model.load_state_dict(state, strict=False)
