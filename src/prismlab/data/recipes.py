"""Rows to documents: the text form of a source, by its fields or by its recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from prismlab.data.document import Document
from prismlab.data.recipe_list import RECIPES
from prismlab.data.rows import BadRow, Row, encodable, question_and_answer
from prismlab.data.templates import ROLES, ThinkTemplate
from prismlab.errors import DataError

_MESSAGE_KEYS = (("role", "from"), ("content", "value"))


def recipes() -> list[dict[str, Any]]:
    """What ``prism data sources`` prints: a JSON object a recipe."""
    return [
        {
            "name": one.name,
            "title": one.title,
            "use": one.use,
            "domain": one.domain,
            "licence": one.licence,
            "tokens": one.tokens,
            "tokens_note": one.tokens_note,
            "hub": one.hub,
            "config": one.config,
            "split": one.split,
            "folder": one.folder,
            "columns": dict(one.columns),
            "verified": one.verified,
            "form": one.form,
            "fields": dict(one.fields),
            "id": one.id,
            "keep": [list(condition) for condition in one.keep],
            "sample": one.sample,
            "rule": one.rule,
        }
        for one in RECIPES.values()
    ]


def _messages(row: Row, field: str) -> list[dict[str, Any]]:
    """Messages as ``{role, content}``; some data sets call these ``from`` and ``value``."""
    found = row.field(field)
    if not isinstance(found, (list, tuple)) or not all(isinstance(one, Mapping) for one in found):
        raise BadRow(row.where, "no messages", f"field {field!r} must be a list of {{role, content}}")
    messages: list[dict[str, Any]] = []
    for one in found:
        role, content = (next((one[key] for key in keys if key in one), None) for keys in _MESSAGE_KEYS)
        messages.append({"role": role, "content": content})
    return messages


def _chat(row: Row, field: str, template: ThinkTemplate) -> str:
    try:
        return template.chat(_messages(row, field))
    except BadRow:
        raise
    except DataError as error:
        raise BadRow(row.where, "a message of another kind", str(error)) from error


def _pair(row: Row, field: str) -> tuple[str, str]:
    """Question and answer of a conversation with one turn; a system message stands above the question."""
    messages = _messages(row, field)
    try:
        turns = [(ROLES[str(one["role"]).lower()], str(one["content"] or "").strip()) for one in messages]
    except KeyError as error:
        raise BadRow(row.where, "a message of another kind", f"a message without or with another {error}") from error
    system = [text for role, text in turns if role == "System" and text]
    spoken = [(role, text) for role, text in turns if role != "System"]
    if [role for role, _ in spoken] != ["User", "Assistant"]:
        detail = f"{len(spoken)} messages; one question and one answer are wanted"
        raise BadRow(row.where, "not one question and one answer", detail)
    question, answer = spoken[0][1], spoken[1][1]
    if question in ("", "-") or not answer:
        what = "question" if question in ("", "-") else "answer"
        raise BadRow(row.where, f"no {what}", f"the {what} is {'-' if question == '-' else 'empty'}; fill it in")
    return "\n".join([*system, question]), answer


def _row_id(row: Row, name: str | None) -> str:
    for key in (name,) if name else ("id",):
        try:
            value = row.field(key)
        except BadRow:
            continue
        if isinstance(value, (str, int)) and not isinstance(value, bool) and str(value):
            return encodable(row.where, str(value))
    return row.where


def document_maker(spec_json: Mapping[str, Any], template: ThinkTemplate) -> Callable[[Row], Document]:
    """A function that makes a document of a row of this source.

    Questions and answers, given by two fields or by a recipe of pairs, are joined by a line break; messages get the
    prefixes ``User:`` and ``Assistant:`` otherwise. With ``loss: answer`` the document says where its answer begins.

    The function raises ``BadRow`` for a row that does not have the fields, or not of the right kind.
    """
    recipe = RECIPES[spec_json["recipe"]] if spec_json.get("recipe") else None
    fields: Mapping[str, Any] = recipe.fields if recipe else spec_json.get("fields") or {}
    pairs, answers = recipe is not None and recipe.form == "pair", spec_json.get("loss") == "answer"
    if answers and fields.get("question") is None and not pairs:
        raise DataError("'loss: answer' needs the fields 'question' and 'answer', so that it is known where it begins")

    def text_of(row: Row) -> tuple[str, int]:
        if fields.get("messages") is not None and not pairs:
            return _chat(row, fields["messages"], template), 0
        if fields.get("messages") is None and fields.get("question") is None:
            return row.text(fields.get("text") or "text"), 0
        if fields.get("messages") is not None:
            question, answer = _pair(row, fields["messages"])
        else:
            question, answer, _ = question_and_answer(row, fields)
        return template.direct(question, answer), len(template.prompt(question)) if answers else 0

    def make(row: Row) -> Document:
        text, prompt = text_of(row)
        return Document(encodable(row.where, text), prompt, row.where, _row_id(row, recipe.id if recipe else None))

    return make
