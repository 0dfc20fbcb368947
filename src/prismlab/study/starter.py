"""The study files that ``prism new`` writes: complete and commented; all but the micro one name files to be put in."""

from __future__ import annotations

from pathlib import Path

from prismlab.errors import SpecError
from prismlab.study.explain import problem

_HEAD = """\
# A study: everything that 'prism run @file@' builds, from bases to a report of decided claims.
#   prism check @file@     what is understood, and what is missing for which claim
#   prism plan @file@      the steps, what is built already, tokens and time
#   prism run @file@       build what is missing; run it again after a stop and it goes on
name: "@name@"
description: >-
  One or two sentences for the head of the report.
seeds: [0]                      # each seed repeats everything; intervals of claims need at least 2, better 3
run: {jobs: 1, threads: 1}      # steps at a time, CPU threads a step

"""

_MICRO = """\
bases:
  # Weights drawn at random, tokens are bytes.
  # arch: llama, mistral, mistral-swa, granite, granite4, granite4-h or nemotron-h
  tiny: {arch: llama, width: 128, layers: 4}

sources:
  web: {micro: {domain: web}}                  # real English found with every Python
  source-code: {micro: {domain: code-text}}    # real Python source
  math-direct: {micro: {domain: math, form: direct}}
  math-worked: {micro: {domain: math, form: worked}}
  code-direct: {micro: {domain: code, form: direct}}
  code-worked: {micro: {domain: code, form: worked}}
  science-facts: {micro: {domain: science, form: facts}}
  science-worked: {micro: {domain: science, form: worked}}

mixtures:                       # shares of tokens; they need not sum to anything
  pretrain:
    weights: {web: 60, source-code: 22, math-direct: 5, code-direct: 5, math-worked: 4, code-worked: 4}
  mc: {weights: {web: 22, source-code: 8, math-worked: 35, code-worked: 35}}
  mcs: {weights: {web: 22, source-code: 8, math-worked: 23, code-worked: 23, science-worked: 19, science-facts: 5}}

checkpoints:                    # any graph: each 'from' names a base or another checkpoint
  base:
    stage: pretrain             # pretrain, midtrain, finetune, extend, merge or rl
    from: tiny
    mixture: pretrain
    steps: 300
    rows: 32                    # sequences a step
    seq_len: 128                # tokens a sequence
    optimizer: {lr: 3.0e-3, warmup: 20, eps: 1.0e-8}
  mid-mc: &mid                  # &mid and <<: *mid are plain YAML: the same settings again
    stage: midtrain
    from: base
    mixture: mc
    steps: 300
    rows: 32
    seq_len: 128
    optimizer: {lr: 1.5e-3, warmup: 20, eps: 1.0e-8}
  mid-mcs: {<<: *mid, mixture: mcs}
  rl-mcs: &rl
    stage: rl
    from: mid-mcs
    prompts: mcs
    steps: 30
    prompts_per_step: 16
    samples: 8                  # responses a prompt: the group of GRPO
    max_new_tokens: 64
    optimizer: {lr: 5.0e-5, schedule: linear, final_lr_factor: 0.0, weight_decay: 0.0, eps: 1.0e-8}
    snapshots: 5
  rl-base: {<<: *rl, from: base}

tasks:
  addition: {micro: {domain: math}}
  programs: {micro: {domain: code}}
  elements: {micro: {domain: science}}

scorings:                       # candidates for RL, sampled and scored by one checkpoint
  all: {by: mid-mcs, tasks: [addition, programs, elements], candidates: 96, samples: 16, max_new_tokens: 64}
prompts:                        # chosen by how many of their samples were right
  mcs: {scoring: all, tasks: [addition, programs, elements], min_correct: 1}

evaluations:
  core:
    tasks: [addition, programs, elements]
    items: 100
    samples: 2
    max_new_tokens: 64
    text: [web]                 # held-out documents, in bits per byte: what should be retained
    text_documents: 32
    text_tokens: 128            # what was trained on
"""

_DATA = """\
sources:                        # paths and globs start from this file's folder
  # Rows of jsonl, jsonl.gz or parquet; 'fields' names the fields that hold the text.
  encyclopedia: {files: [data/wiki/*.jsonl.gz], domain: web, fields: {text: text}}
  # A text file: blank lines part its documents.
  books: {files: [data/books.txt], domain: web}
  # Question, line break, answer.
  word-problems: {files: [data/math_train.jsonl], domain: math, fields: {question: question, answer: answer}}
  exercises: {files: [data/code.parquet], domain: code, fields: {question: prompt, answer: solution}}
  # Multiple choice: 'answer' is the index of the right entry of 'choices', which are shown as lettered lines.
  exams:
    files: [data/science_train.jsonl]
    domain: science
    fields: {question: query, answer: gold, choices: choices}
  # A list of {role, content}, shown as 'User:' and 'Assistant:'.
  chat: {files: [data/chat.jsonl], domain: chat, fields: {messages: messages}}

mixtures:
@first@  mid:
    weights: {encyclopedia: 30, books: 10, chat: 5, word-problems: 25, exercises: 15, exams: 15}
    max_epochs: 50              # refused if a source would be repeated more often

"""

_FILES = (
    """\
bases:
  tiny: {arch: llama, width: 128, layers: 4}     # random weights; a checkpoint folder goes here as well:
  # mine: {checkpoint: ../models/my-model}        # config.json, *.safetensors and a tokenizer

"""
    + _DATA.replace("@first@", "  start: {weights: {encyclopedia: 70, books: 20, chat: 10}, max_epochs: 50}\n")
    + """\
checkpoints:
  base:
    stage: pretrain
    from: tiny
    mixture: start
    steps: 200
    rows: 16
    seq_len: 256
    optimizer: {lr: 3.0e-3, warmup: 20, eps: 1.0e-8}
  mid:
    stage: midtrain
    from: base
    mixture: mid
    steps: 200
    rows: 16
    seq_len: 256
    optimizer: {lr: 1.5e-3, warmup: 20, eps: 1.0e-8}

"""
)

_HUB = (
    """\
bases:
  # A model id with the commit that was looked at: a branch could move under the study.
  granite: {checkpoint: ibm-granite/granite-3.3-8b-base@main}

# A source can be a dataset of the hub, which is streamed:
#   web: {hub: {id: HuggingFaceTB/dclm-edu, revision: COMMIT}, domain: web, fields: {text: text}}

"""
    + _DATA.replace("@first@", "")
    + """\
checkpoints:
  mid:                          # the defaults are the reference study's: AdamW, 5e-5, cosine, 128 rows of 8,192 tokens
    stage: midtrain
    from: granite
    mixture: mid
    steps: 1000
    precision: bf16
    micro_rows: 1               # rows in memory at a time, on each device
    launch: torchrun
    nproc: 8

"""
)

_TASKS = """\
tasks:
  # verifier: number (the last one, after '####' if there is one), choice or exact
  word-problems-test:
    files: [data/math_test.jsonl]
    domain: math
    fields: {question: question, answer: answer}
    verifier: number
  exams-test:
    files: [data/science_test.jsonl]
    domain: science
    fields: {question: query, answer: gold, choices: choices}
    verifier: choice

evaluations:
  core:
    tasks: [word-problems-test, exams-test]
    items: 100
    max_new_tokens: @tokens@
    text: [encyclopedia]        # held-out documents, in bits per byte: what should be retained
    text_documents: 32
    text_tokens: 256            # what was trained on
"""

_ANALYSES = """\

analyses:                       # a key that is not here is not run; {} takes the defaults
  weights: {}                   # how far and how densely weights moved
  direction: {}                 # cosine between the updates of two mid-trainings
  cka: {sources: [@source@], inputs: 50, max_tokens: 128, resample_size: 25}
  behaviour: {evaluation: core} # length and confidence of responses
  trajectory: {}                # change over the snapshots of RL
"""

KINDS = ("micro", "files", "hub")
"""The starters there are."""


def starter(kind: str, name: str, file: str) -> str:
    """The text of a starter study.

    Args:
        kind: one of ``KINDS``: the micro world, files of your own with a tiny model, or a model from the hub.
        name: the study's name.
        file: name of the file, as the comments should call it.

    Raises:
        SpecError: there is no such kind.
    """
    bodies = {
        "micro": (_MICRO + _ANALYSES, "web"),
        "files": (_FILES + _TASKS + _ANALYSES, "encyclopedia"),
        "hub": (_HUB + _TASKS + _ANALYSES, "encyclopedia"),
    }
    if kind not in bodies:
        raise SpecError(problem("--kind", f"{kind!r} is not known", KINDS, kind))
    body, source = bodies[kind]
    filled = {"name": name, "file": file, "source": source, "tokens": "64" if kind == "files" else "2048"}
    text = _HEAD + body
    for key, value in filled.items():
        text = text.replace(f"@{key}@", value)
    return text


def study_name(path: Path) -> str:
    """A valid study name made of a file's name."""
    kept = "".join(
        letter if letter.isascii() and (letter.isalnum() or letter in "._-") else "-" for letter in path.stem
    )
    return kept.lower().strip("._-")[:64] or "study"
