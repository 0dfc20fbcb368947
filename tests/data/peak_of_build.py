"""Build a corpus of one generated file of so many megabytes; print the peak of resident memory in MB."""

from __future__ import annotations

import json
import random
import resource
import sys
from pathlib import Path

from prismlab.data.build import build_corpus
from prismlab.model.tokens import build_byte_tokenizer
from prismlab.study.spec import SourceSpec
from prismlab.study.world import MicroSpec


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(folder: Path, megabytes: int, method: str) -> None:
    chosen, size = random.Random(0), 0
    words = ["".join(chosen.choices("abcdefghij", k=6)) for _ in range(1000)]
    texts = [" ".join(chosen.choices(words, k=chosen.randint(20, 600))) for _ in range(500)]
    with (folder / "big.jsonl").open("w") as file:
        while size < megabytes * 1e6:
            size += file.write(json.dumps({"text": f"{size} {chosen.choice(texts)}"}) + "\n")
    spec = SourceSpec.model_validate({"files": ["big.jsonl"], "domain": "web"}).model_dump(mode="json", by_alias=True)
    config = {
        "mixture": "m",
        "weights": {"big": 1.0},
        "max_epochs": 1.0,
        "sources": {"big": spec},
        "micro": MicroSpec().model_dump(mode="json"),
        "files": {"big": [str(folder / "big.jsonl")]},
        "packing": {"method": method, "window": 20_000},
        "rows": int(size * 0.9 / 8192),
        "seq_len": 8192,
        "heldout": 0.02,
        "template": "think",
        "seed": 0,
    }
    before = peak()
    (folder / "out").mkdir()
    build_corpus(config, build_byte_tokenizer(), folder / "out")
    print(json.dumps({"before": before, "after": peak()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
