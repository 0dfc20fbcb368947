"""Named prompt templates: one place decides how questions, reasoning, answers and chats look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prismlab.errors import DataError, SpecError

ROLES = {
    "user": "User",
    "human": "User",
    "prompter": "User",
    "assistant": "Assistant",
    "gpt": "Assistant",
    "system": "System",
}
"""How data sets call the speakers, and how the reference study shows them."""


class ThinkTemplate:
    """Question, line break, then ``<think> chain </think> answer``, or the answer alone."""

    name = "think"

    def prompt(self, question: str) -> str:
        """What a model is given before it answers."""
        return f"{question}\n"

    def worked(self, question: str, chain: str, answer: str) -> str:
        """A training document with reasoning."""
        return f"{self.prompt(question)}<think> {chain} </think> {answer}"

    def direct(self, question: str, answer: str) -> str:
        """A training document with the answer alone."""
        return f"{self.prompt(question)}{answer}"

    def chat(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """A conversation as lines with the speakers' prefixes.

        Args:
            messages: each with ``role`` and ``content``.

        Raises:
            DataError: a message lacks one of them, its content is not text, or its role is not known.
        """
        lines: list[str] = []
        for message in messages:
            role, content = message.get("role"), message.get("content")
            if not isinstance(role, str) or not isinstance(content, str):
                raise DataError(f"a message needs 'role' and 'content' as text; it has {', '.join(map(str, message))}")
            if role.lower() not in ROLES:
                raise DataError(f"role {role!r} is not known; roles are {', '.join(sorted(ROLES))}")
            lines.append(f"{ROLES[role.lower()]}: {content.strip()}")
        return "\n".join(lines)


TEMPLATES: dict[str, ThinkTemplate] = {ThinkTemplate.name: ThinkTemplate()}


def get_template(name: str) -> ThinkTemplate:
    """The template of this name.

    Raises:
        SpecError: there is none.
    """
    if name not in TEMPLATES:
        raise SpecError(f"template {name!r} is not known; there are {', '.join(sorted(TEMPLATES))}")
    return TEMPLATES[name]
