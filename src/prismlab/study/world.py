"""What every configuration is, and the micro world: its difficulty, its sources and its tasks."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast, get_origin

from pydantic import BaseModel, ConfigDict, Field, model_validator


def _holds_truth_value(value: object, annotation: object) -> bool:
    """Whether a value, or one in its list, or one under the names of its mapping, is true or false."""
    inside: list[object] = cast(list[object], value) if isinstance(value, list) else [value]
    if isinstance(value, dict):
        # What is no mapping of names is a part with keys of its own, which looks after itself.
        inside = list(cast(dict[object, object], value).values()) if get_origin(annotation) is dict else []
    return any(isinstance(one, bool) for one in inside)


def _is_blank(value: object) -> bool:
    """Whether a value is text without a character to be seen, or a list with such a text in it."""
    inside: list[object] = cast(list[object], value) if isinstance(value, list) else [value]
    return any(isinstance(one, str) and not one.strip() for one in inside)


class Spec(BaseModel):
    """Frozen, keyword-only, no unknown keys, no NaN; docstrings beneath fields are their descriptions."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False, strict=False
    )

    @model_validator(mode="before")
    @classmethod
    def _truth_values_and_blanks_where_they_belong(cls, data: Any) -> object:
        """Python takes true for 1, and YAML reads the bare words yes, no, on and off as truth values too."""
        given = cast(dict[object, object], data) if isinstance(data, dict) else {}
        for name, field in cls.model_fields.items():
            key = field.alias or name
            if key in given and field.annotation is not bool and _holds_truth_value(given[key], field.annotation):
                raise ValueError(f"{key!r} is true or false (yes, no, on, off too): give a number, or quote the text")
            # A path '' would be the study's own folder, a project '' whatever the service makes of it.
            if key in given and given[key] != field.default and _is_blank(given[key]):
                raise ValueError(f"{key!r} is blank: give it a text, or leave it out")
        return cast(object, data)


class MicroSpec(Spec):
    """How hard the generated tasks are. One set of knobs a study, so that sources and tests speak of one world."""

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


Length = Annotated[int, Field(ge=96, le=2**20)]
"""Tokens of a question of retrieval."""


def _check_length(domain: str, tokens: int | None) -> None:
    if (domain == "retrieval") != (tokens is not None):
        raise ValueError("'tokens' is for 'domain: retrieval', which needs it; the other domains have no length")


class MicroSource(Spec):
    """Text or tasks from the micro world."""

    domain: Literal["web", "code-text", "chat", "math", "code", "science", "retrieval"]
    """``web``, ``code-text`` and ``chat`` are real text found on the machine; the others are generated tasks."""
    form: Literal["direct", "worked", "facts"] = "direct"
    """For tasks: answer alone, ``<think>`` chain and answer, or (science) the facts as sentences."""

    tokens: Length | None = None
    """For ``retrieval``: tokens of a question."""

    @model_validator(mode="after")
    def _length_fits(self) -> MicroSource:
        _check_length(self.domain, self.tokens)
        return self

    @model_validator(mode="after")
    def _form_fits(self) -> MicroSource:
        if self.form == "facts" and self.domain != "science":
            raise ValueError("'form: facts' is for 'domain: science' alone")
        if self.form == "worked" and self.domain in ("web", "code-text", "chat"):
            raise ValueError(f"'form: worked' is for tasks (math, code, science); {self.domain} is text")
        return self


class MicroTask(Spec):
    """A generated task of the micro world, its test split."""

    domain: Literal["math", "code", "science", "retrieval"]
    """Which task family."""
    tokens: Length | None = None
    """For ``retrieval``: tokens of a question; scores are also given by length."""

    @model_validator(mode="after")
    def _length_fits(self) -> MicroTask:
        _check_length(self.domain, self.tokens)
        return self
