"""The data half side by side with what others do: packing, tokenising into a corpus, reading rows.

Seconds are of the CPU, over all threads of the process, where ``cpu`` says so: on a machine that others use too, what a
clock on the wall says of short work is mostly waiting.

``python benchmarks/data.py [--parts packing tokens ...] [--text FILE ...] [--data DIR] [--dir DIR] [--out FILE]``
prints what it measures and writes its numbers as JSON.

packing   100k documents of log-normal length at 8,192 tokens a row, tokens moved: ours from the token cache on disk
          (page cache warm) a shard of rows at a time, as a build does, in 16 and in 32 bits a token; trl's
          ``pack_dataset`` by ``bfd`` from an Arrow table in memory (32 bits), as one batch, which fills rows as ours
          does, and by its default of 1,000 documents, which pads ninety times as much. Then our assignment alone at
          100k, 1M and 5M documents.
tokens    Documents of ``--text`` (jsonl or txt, also .gz) into a corpus on disk, against ``encode_batch_fast`` of the
          tokenizers library on the same texts in memory; both use the threads that the library takes by itself.
items     The evaluation items of ``benchmarks/contamination.py`` (under ``--data``) looked for in the ``--text``, read
          ``--repeat`` times, against reading the same text and normalising it into words, a process and a thread each.
reading   A step's rows read from that corpus, against a training step of a model of 0.9M parameters.
memory    Peak of resident memory of ``prism data build`` as a process of its own, over a generated source of
          ``--gigabytes``, of which it takes a ``--share`` of the tokens; with ``--clean`` the source goes through
          cleaning and exact deduplication first. Needs about 2 to 6 times the source's size on disk, in ``--dir``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np

from prismlab.data.build import build_corpus
from prismlab.data.cache import TokenCache
from prismlab.data.corpus import Corpus, token_dtype
from prismlab.data.fit import best_fit
from prismlab.data.packing import best_fit_rows, pad_rows
from prismlab.data.shards import shard_rows
from prismlab.data.sources import row_documents
from prismlab.study.spec import SourceSpec
from prismlab.study.world import MicroSpec

SEQ_LEN, DOCUMENTS = 8192, 100_000
VOCABS = (49_152, 100_000)
"""Token ids: as many as Granite 3.3's tokenizer has, which fit 16 bits, and more, which do not."""
REPEATS = 3


def timed(work: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> tuple[Any, float]:
    """What the work gives, and its seconds by a clock."""
    start = clock()
    found = work()
    return found, clock() - start


def lengths_of(documents: int) -> np.ndarray:
    """Log-normal lengths, median 545 tokens, mean about 960, cut at a row."""
    drawn = np.random.default_rng(0).lognormal(6.3, 1.1, documents)
    return np.clip(drawn.astype(np.int64), 1, SEQ_LEN)


def cache_of(lengths: np.ndarray, folder: Path, vocab: int) -> TokenCache:
    """A token cache with documents of these lengths, in parts as a build writes them."""
    dtype = token_dtype(vocab)
    tokens = np.random.default_rng(1).integers(0, vocab, int(lengths.sum()), dtype=dtype)
    ends = np.append(0, np.cumsum(lengths))

    def encode(parts: Any) -> Any:
        at = 0
        for part in parts:
            stop = at + len(part)
            none = np.zeros(len(part), np.int64)
            yield SimpleNamespace(tokens=tokens[ends[at] : ends[stop]], lengths=lengths[at:stop], prompts=none)
            at = stop

    stand_in: Any = SimpleNamespace(encoder=SimpleNamespace(dtype=dtype), encode=encode)
    document = SimpleNamespace(text=" " * 4000)
    cache = TokenCache(folder, stand_in, lambda: [document] * len(lengths), dict)  # type: ignore[arg-type]
    cache.ensure(lambda: False)
    return cache


def packing(folder: Path) -> dict[str, Any]:
    """Our packing against trl's, interleaved, and our assignment at growing sizes."""
    import datasets
    import pyarrow as pa
    from trl.data_utils import pack_dataset

    datasets.disable_progress_bars()
    lengths = lengths_of(DOCUMENTS)
    total = int(lengths.sum())
    caches = {vocab: cache_of(lengths, folder / f"cache-{vocab}", vocab) for vocab in VOCABS}

    def ours(vocab: int) -> int:
        cache, dtype = caches[vocab], token_dtype(vocab)
        layout, each = best_fit_rows(lengths, SEQ_LEN), shard_rows(SEQ_LEN, dtype)
        buffer = np.empty((each, SEQ_LEN), dtype)
        for first in range(0, layout.rows, each):
            part = layout.take(np.arange(first, min(first + each, layout.rows)))
            rows = buffer[: part.rows]
            cache.gather(part.document, part.offset, part.length, part.places(SEQ_LEN), rows, compiled=True)
            pad_rows(rows, np.arange(part.rows), part.fill(), 0)
        return layout.rows

    flat = np.random.default_rng(1).integers(0, 100_000, total, dtype=np.int32)
    offsets = np.append(0, np.cumsum(lengths)).astype(np.int32)
    column = pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat))
    table = datasets.Dataset(pa.table({"input_ids": column}))
    datasets.disable_caching()

    def trl(**options: Any) -> int:
        return len(pack_dataset(table, seq_length=SEQ_LEN, strategy="bfd", map_kwargs=options))

    best_fit(lengths[:10], SEQ_LEN)
    ways: dict[str, Callable[[], int]] = {
        **{f"ours_{token_dtype(vocab).name}": lambda vocab=vocab: ours(vocab) for vocab in VOCABS},
        "trl_one_batch": lambda: trl(batch_size=DOCUMENTS),
        "trl_default": trl,
    }
    found: dict[str, Any] = {name: [] for name in ways}
    wall: dict[str, Any] = {name: [] for name in ways}
    rows: dict[str, int] = {}
    for _ in range(REPEATS):
        for name, way in ways.items():
            begun = time.process_time()
            rows[name], seconds = timed(way)
            wall[name].append(seconds)
            found[name].append(time.process_time() - begun)
    for cache in caches.values():
        cache.close()
    result = {
        name: {
            "seconds": [round(one, 3) for one in wall[name]],
            "cpu_seconds": [round(one, 3) for one in seconds],
            "tokens_per_cpu_second": total / statistics.median(seconds),
            "fill": total / (rows[name] * SEQ_LEN),
        }
        for name, seconds in found.items()
    }
    ratios = {
        f"{ours_} / {name}, {clock}": statistics.median(a / b for a, b in zip(times[name], times[ours_], strict=True))
        for ours_ in ways
        for name in ("trl_one_batch", "trl_default")
        if ours_.startswith("ours")
        for clock, times in (("cpu", found), ("wall", wall))
    }
    growth = {}
    for documents in (100_000, 1_000_000, 5_000_000):
        many = lengths_of(documents)
        growth[documents] = min(
            timed(lambda many=many: best_fit(many, SEQ_LEN), time.process_time)[1] for _ in range(REPEATS)
        )
    return {"tokens": total, **result, "times_as_fast_as": ratios, "assignment_cpu_seconds": growth}


def trained_tokenizer(texts: list[str]) -> Any:
    """A byte-level BPE of 8,000 tokens, trained on a part of the texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=8000,
        special_tokens=["<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator((text[:20_000] for text in texts[:200]), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")


def tokens(folder: Path, files: list[Path], method: str) -> dict[str, Any]:
    """A whole build of a corpus against the library's batch encoding, interleaved."""
    spec = SourceSpec.model_validate({"files": [str(file) for file in files], "domain": "web"})
    source = spec.model_dump(mode="json", by_alias=True)
    texts = [one.text for one in row_documents("text", source, list(map(str, files)), "think")]
    tokenizer = trained_tokenizer(texts)
    backend = tokenizer.backend_tokenizer
    raw_count, _ = timed(lambda: sum(len(one) for one in backend.encode_batch_fast(texts, add_special_tokens=False)))
    config = {
        "mixture": "m",
        "weights": {"text": 1.0},
        "max_epochs": 1.0,
        "sources": {"text": source},
        "micro": MicroSpec().model_dump(mode="json"),
        "files": {"text": [str(file) for file in files]},
        "packing": {"method": method},
        # All of it, but for a last row and what 1% held out by hash may take.
        "rows": int(raw_count * 0.97 / SEQ_LEN),
        "seq_len": SEQ_LEN,
        "heldout": 1e-9,
        "template": "think",
        "seed": 0,
    }
    built, raw, cpu = [], [], []
    for repeat in range(REPEATS):
        out = folder / f"{method}-{repeat}"
        out.mkdir()
        clock = [time.process_time()]
        _, seconds = timed(lambda: backend.encode_batch_fast(texts, add_special_tokens=False))
        raw.append(raw_count / seconds)
        clock.append(time.process_time())
        result, seconds = timed(lambda out=out: build_corpus(config, tokenizer, out))
        built.append((raw_count + len(texts)) / seconds)
        clock.append(time.process_time())
        cpu.append((clock[1] - clock[0]) / (clock[2] - clock[1]))
        fill = result.metrics["tokens"] / (result.metrics["tokens"] + result.metrics["padding"])
    share = statistics.median(a / b for a, b in zip(built, raw, strict=True))
    return {
        "documents": len(texts),
        "tokens": raw_count,
        "library_tokens_per_second": [round(one) for one in raw],
        "corpus_tokens_per_second": [round(one) for one in built],
        "share_of_library": share,
        "share_of_library_by_cpu": statistics.median(cpu),
        "fill": fill,
    }


def reading(folder: Path) -> dict[str, Any]:
    """Rows of a step read from a corpus, and a step of a small model on them."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    corpus = Corpus.open(folder)
    rows = min(2, corpus.n_rows // 4)
    starts = np.random.default_rng(0).integers(0, corpus.n_rows - rows, 200).tolist()

    def read() -> None:
        for start in starts:
            corpus.tokens(start, start + rows)
            corpus.loss_mask(start, start + rows)
            [corpus.boundaries(row) for row in range(start, start + rows)]

    _, seconds = timed(read, time.process_time)
    shape = {"hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 4, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=corpus.vocab, **shape))
    optimizer = torch.optim.AdamW(model.parameters())

    def step() -> None:
        ids = torch.from_numpy(corpus.tokens(0, rows))
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    steps = [timed(step, time.process_time)[1] for _ in range(2)]
    read_ = seconds / len(starts)
    return {
        "rows": rows,
        "read_cpu_seconds": read_,
        "step_cpu_seconds": min(steps),
        "share_of_step": read_ / min(steps),
    }


def items(files: list[Path], data: Path, repeat: int) -> dict[str, Any]:
    """Decontamination against reading and normalising alone, interleaved; seconds of the CPU."""
    from contamination import items_of

    from prismlab.data.decontaminate import Decontaminator, batches
    from prismlab.data.grams import Batch

    finder, index = timed(lambda: Decontaminator(items_of(data)), time.process_time)
    spec = SourceSpec.model_validate({"files": [str(file) for file in files], "domain": "web"})
    source = spec.model_dump(mode="json", by_alias=True)

    def texts() -> Any:
        return (
            one.text for _ in range(repeat) for one in row_documents("text", source, list(map(str, files)), "think")
        )

    def read() -> int:
        return sum(len(Batch(batch).words) for batch in batches(texts()))

    finder.scan(["warm " * 5000])
    alone, whole = [], []
    for _ in range(REPEATS):
        words, seconds = timed(read, time.process_time)
        alone.append(seconds)
        report, seconds = timed(lambda: finder.scan(texts()), time.process_time)
        whole.append(seconds)
    return {
        "items": report.items,
        "documents": report.documents,
        "characters": report.characters,
        "words": words,
        "found": dict(report.counts),
        "index_seconds": index,
        "read_and_normalise_seconds": alone,
        "decontaminate_seconds": whole,
        "ratio": statistics.median(b / a for a, b in zip(alone, whole, strict=True)),
        "megabytes_per_second": report.characters / 1e6 / min(whole),
    }


def memory(folder: Path, gigabytes: float, share: float, clean: bool) -> dict[str, Any]:
    """Peak memory and time of a build over one large file."""
    chosen, size, wanted = np.random.default_rng(0), 0, int(gigabytes * 1e9)
    words = [bytes(chosen.integers(97, 123, chosen.integers(2, 9)).astype(np.uint8)).decode() for _ in range(5000)]
    texts = [" ".join(words[at] for at in chosen.integers(0, 5000, chosen.integers(20, 2000))) for _ in range(400)]
    with (folder / "big.jsonl").open("w", encoding="utf-8") as file:
        while size < wanted:
            size += file.write(f'{{"text": "{size} {texts[size % 400]} {texts[size // 7 % 400]}"}}\n')
    source = "{files: [big.jsonl], domain: web" + (", dedup: exact}" if clean else "}")
    (folder / "big.yaml").write_text(f"sources: {{big: {source}}}\nmixtures: {{all: {{weights: {{big: 1}}}}}}\n")
    arguments = [sys.executable, "-m", "prismlab", "data", "build", "big.yaml", "all", "--tokenizer", "bytes"]
    arguments += ["--tokens", str(int(size * share)), "--out", "corpus", "--json"]
    start = time.perf_counter()
    quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    command = ["env", "-C", str(folder), *arguments]
    process = os.posix_spawn("/usr/bin/env", command, dict(os.environ), file_actions=quiet)
    _, status, used = os.wait4(process, 0)
    if status:
        raise SystemExit(f"the build ended with {os.waitstatus_to_exitcode(status)}")
    return {
        "source_gigabytes": size / 1e9,
        "share": share,
        "cleaned": clean,
        "peak_megabytes": used.ru_maxrss / 1024,
        "seconds": time.perf_counter() - start,
        "cpu_seconds": used.ru_utime + used.ru_stime,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=["packing", "tokens", "reading"])
    parser.add_argument("--text", nargs="+", type=Path, default=[], help="files for 'tokens' and 'reading'")
    parser.add_argument("--data", type=Path, help="folder with the evaluation items of 'items'")
    parser.add_argument("--repeat", type=int, default=1, help="times that 'items' reads the text")
    parser.add_argument("--gigabytes", type=float, default=10.0, help="size of the source of 'memory'")
    parser.add_argument("--share", type=float, default=0.1, help="share of it that 'memory' builds a corpus of")
    parser.add_argument("--clean", action="store_true", help="'memory' with cleaning")
    parser.add_argument("--dir", type=Path, help="where temporary files go")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if asked.dir:
        asked.dir.mkdir(parents=True, exist_ok=True)
    if not asked.text and {"tokens", "reading", "items"} & set(asked.parts):
        parser.error("'tokens', 'reading' and 'items' need --text")
    if asked.data is None and "items" in asked.parts:
        parser.error("'items' needs --data")
    found: dict[str, Any] = {
        "machine": {"cpus": os.cpu_count(), "load_before": os.getloadavg(), "python": platform.python_version()}
    }
    with TemporaryDirectory(dir=asked.dir) as name:
        folder = Path(name)
        if "packing" in asked.parts:
            found["packing"] = packing(folder)
        if "tokens" in asked.parts or "reading" in asked.parts:
            found["tokens"] = {method: tokens(folder, asked.text, method) for method in ("concat", "best_fit")}
        if "reading" in asked.parts:
            found["reading"] = reading(folder / "concat-0")
        if "items" in asked.parts:
            found["items"] = items(asked.text, asked.data, asked.repeat)
        if "memory" in asked.parts:
            found["memory"] = memory(folder, asked.gigabytes, asked.share, asked.clean)
    found["machine"]["load_after"] = os.getloadavg()
    print(json.dumps(found, indent=1))
    if asked.out:
        asked.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
