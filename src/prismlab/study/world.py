"""Difficulty knobs of the micro world, shared by its training sources and its test tasks."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator


class MicroSpec(BaseModel):
    """How hard the generated tasks are. One set of knobs a study, so that sources and tests speak of one world."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    math_min_digits: Annotated[int, Field(ge=1, le=6)] = 2
    """Fewest digits of an addend."""
    math_max_digits: Annotated[int, Field(ge=1, le=6)] = 3
    """Most digits of an addend."""
    code_k: Annotated[int, Field(ge=2, le=99)] = 12
    """Largest factor k in the programs ``k*x+m``."""
    code_m: Annotated[int, Field(ge=2, le=99)] = 20
    """Largest summand m in the programs ``k*x+m``."""
    science_elements: Annotated[int, Field(ge=8, le=118)] = 24
    """How many chemical elements there are facts about."""
    science_choices: Annotated[int, Field(ge=2, le=5)] = 4
    """Choices of a question; chance is one over this."""
    documents: Annotated[int, Field(ge=64, le=2_000_000)] = 20_000
    """Training documents that each generated source holds at most."""

    @model_validator(mode="after")
    def _digits(self) -> MicroSpec:
        if self.math_min_digits > self.math_max_digits:
            raise ValueError("'math_min_digits' is above 'math_max_digits'")
        return self
