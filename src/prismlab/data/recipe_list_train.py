"""Recipes of the sources that the reference study trains on (its tables 1 and 18)."""

from __future__ import annotations

from collections.abc import Mapping

from prismlab.data.recipe_list_base import MESSAGES, Condition, Recipe

_MOT_COLUMNS = {"messages": MESSAGES, "num_tokens": "int64", "source": "string"}
_NEMOTRON_COLUMNS = {
    "uuid": "string",
    "license": "string",
    "generator": "string",
    "version": "string",
    "category": "string",
    "reasoning": "string",
    "messages": "list of {role: string, content: string, tool_calls: list of {id, type, function}}",
    "metadata": "string (JSON)",
}
_OCR2_COLUMNS: Mapping[str, str] = dict.fromkeys(
    (
        "question",
        "r1_generation",
        "qwq_critique",
        "solution",
        "judgement",
        "pass_rate",
        "source",
        "license",
        "dataset",
        "split",
        "difficulty",
        "index",
        "id",
        "question_id",
    ),
    "string",
)
_OCR2_RULE = (
    "judgement 'right', pass_rate not -1, then 60,000 rows by the hash of their id. The published 'question' is '-': "
    "fill it in from the data set, split and index that the row names, and read your copy with 'files'"
)
_OCR2_KEEP: tuple[Condition, ...] = (
    ("judgement", "==", "right"),
    ("pass_rate", "is not the number", -1),
    ("question", "not in", ["-", ""]),
)
_OCR2_NOTE = "half of the 1.12 billion that table 1 gives for Python and C++ together: our division"
_CHAT_NOTE = "table 1 gives 0.91 billion for the three chat sets together: divided by us by their published bytes"


def _mot(name: str, domain: str, tokens: float) -> Recipe:
    return Recipe(
        name=f"mot-{name}",
        title=f"Open-R1 Mixture-of-Thoughts, {name}",
        hub="open-r1/Mixture-of-Thoughts",
        config=name,
        domain=domain,
        licence="none stated on the card",
        columns=_MOT_COLUMNS,
        form="pair",
        fields={"messages": "messages"},
        tokens=tokens,
        rule="all rows",
    )


def _nemotron(name: str, domain: str, use: str, tokens: float | None) -> Recipe:
    return Recipe(
        name=f"nemotron-{name}",
        title=f"Nemotron Post-Training v1, {name}",
        hub="nvidia/Nemotron-Post-Training-Dataset-v1",
        split=name,
        domain=domain,
        use=use,
        licence="cc-by-4.0",
        columns=_NEMOTRON_COLUMNS,
        form="pair",
        fields={"messages": "messages"},
        id="uuid",
        keep=(("category", "==", name),),
        tokens=tokens,
        tokens_note="" if tokens else "not in table 1; 100,000 rows of it are RL prompts (table 10)",
        rule="all rows of the split",
    )


def _ocr2(name: str, label: str) -> Recipe:
    return Recipe(
        name=f"ocr2-{name}",
        title=f"OpenCodeReasoning-2, {label}",
        hub="nvidia/OpenCodeReasoning-2",
        config="train",
        split=name,
        domain="code",
        licence="cc-by-4.0",
        columns=_OCR2_COLUMNS,
        form="pair",
        fields={"question": "question", "answer": "r1_generation"},
        id="id",
        keep=_OCR2_KEEP,
        sample=60_000,
        tokens=0.56e9,
        tokens_note=_OCR2_NOTE,
        rule=_OCR2_RULE,
    )


def _starcoder(name: str, columns: Mapping[str, str], verified: bool) -> Recipe:
    return Recipe(
        name=f"starcoder2-{name}",
        title=f"StarCoder2 data extras, {name}",
        hub="bigcode/starcoder2data-extras",
        config=name,
        domain="code-text",
        licence="mixed, see the card",
        columns=columns,
        verified=verified,
        fields={"text": "content"},
        tokens=432.73e9 if name == "stackoverflow" else None,
        tokens_note="table 1's figure for all of the StarCoder2 data, whose code files are published as ids only"
        if name == "stackoverflow"
        else "part of the 432.73 billion of table 1",
        rule="all rows",
    )


TRAIN = (
    Recipe(
        name="dclm-edu",
        title="DCLM-EDU",
        hub="HuggingFaceTB/dclm-edu",
        domain="web",
        licence="cc-by-4.0",
        columns={"id": "string", "text": "string", "edu_int_score": "int64", "edu_score": "float64", "url": "string"},
        fields={"text": "text"},
        id="id",
        keep=(("edu_int_score", ">=", 3),),
        tokens=111.46e9,
        rule="edu_int_score at least 3 (the card's own advice; edu_score is another column)",
    ),
    _mot("math", "math", 0.6e9),
    _mot("code", "code", 1.18e9),
    _mot("science", "science", 0.42e9),
    _nemotron("math", "math", "train", 35.93e9),
    _nemotron("stem", "science", "rl", None),
    Recipe(
        name="megamath-web-pro",
        title="MegaMath-Web-Pro",
        hub="LLM360/MegaMath",
        folder="megamath-web-pro",
        domain="math",
        licence="odc-by",
        columns={"text": "string", "url": "string", "cc-path": "string", "domain": "string"},
        verified=False,
        fields={"text": "text"},
        tokens=14.73e9,
        rule="all rows",
    ),
    _ocr2("python", "Python"),
    _ocr2("cpp", "C++"),
    Recipe(
        name="refinecode",
        title="RefineCode, its published text",
        hub="OpenCoder-LLM/opc-fineweb-code-corpus",
        domain="code-text",
        licence="mit",
        columns={
            "url": "string",
            "tag": "string",
            "text": "string",
            "file_path": "string",
            "dump": "string",
            "file_size_in_byte": "int64",
            "line_count": "int64",
        },
        fields={"text": "text"},
        tokens=186.44e9,
        tokens_note="table 1's figure for RefineCode whole, whose code files are published as metadata only",
        rule="all rows",
    ),
    _starcoder(
        "stackoverflow", {"date": "string", "nb_tokens": "int64", "text_size": "int64", "content": "string"}, False
    ),
    _starcoder("documentation", dict.fromkeys(("project", "source", "language", "content"), "string"), True),
    Recipe(
        name="openthoughts3",
        title="OpenThoughts3, science",
        hub="open-thoughts/OpenThoughts3-1.2M",
        domain="science",
        licence="apache-2.0",
        columns={
            "difficulty": "int64",
            "source": "string",
            "domain": "string",
            "conversations": "list of {from: string, value: string}",
        },
        form="pair",
        fields={"messages": "conversations"},
        keep=(("domain", "==", "science"),),
        tokens=0.73e9,
        rule="domain 'science': ours, since table 1 lists it as science reasoning and gives it the size of that part",
    ),
    Recipe(
        name="wildchat",
        title="WildChat-1M, GPT-4",
        hub="allenai/WildChat-1M",
        domain="chat",
        licence="odc-by",
        columns={
            "conversation_hash": "string",
            "model": "string",
            "timestamp": "timestamp[us, tz=UTC]",
            "conversation": "list of {content, role, language, redacted, toxic, ...}",
            "turn": "int64",
            "language": "string",
            "openai_moderation": "list of structs",
            "toxic": "bool",
            "redacted": "bool",
        },
        form="chat",
        fields={"messages": "conversation"},
        id="conversation_hash",
        keep=(("model", "starts with", "gpt-4"),),
        tokens=0.58e9,
        tokens_note=_CHAT_NOTE,
        rule="model begins with 'gpt-4'",
    ),
    Recipe(
        name="tulu3-personas",
        title="Tulu-3 SFT personas, instruction following",
        hub="allenai/tulu-3-sft-personas-instruction-following",
        domain="chat",
        licence="odc-by",
        columns={"id": "string", "prompt": "string", "messages": MESSAGES, "constraints": "list of string"},
        form="chat",
        fields={"messages": "messages"},
        id="id",
        tokens=0.02e9,
        tokens_note=_CHAT_NOTE,
        rule="all rows",
    ),
    Recipe(
        name="ultrachat",
        title="UltraChat-200k",
        hub="HuggingFaceH4/ultrachat_200k",
        split="train_sft",
        domain="chat",
        licence="mit",
        columns={"prompt": "string", "prompt_id": "string", "messages": MESSAGES},
        form="chat",
        fields={"messages": "messages"},
        id="prompt_id",
        tokens=0.31e9,
        tokens_note=_CHAT_NOTE,
        rule="all rows of train_sft",
    ),
    Recipe(
        name="codex-long",
        title="CodeX-2M-Thinking, long chains",
        hub="XenArcAI/CodeX-2M-Thinking",
        domain="code",
        licence="apache-2.0",
        columns={"input": "string", "output": "string"},
        verified=False,
        form="pair",
        fields={"question": "input", "answer": "output"},
        keep=(("output", "characters >=", 8000),),
        tokens=3.86e9,
        tokens_note="table 18, the long-context phase",
        rule="answers of at least 8,000 characters: the bound is ours, the study says 'longer chains of thought'",
    ),
)
