"""Pairs of checkpoints for benchmarks: llama names, random bfloat16 weights, a second one in which a share has moved.

    python benchmarks/pairs.py DIR --billions 0.58 2.3

Makes ``DIR/0.58b/old``, ``DIR/0.58b/new`` and so on, unless they are there. Weights are normal with standard deviation
0.02; in the second checkpoint a tenth of the elements is multiplied by 1 + 2% of a normal number, so that about one in
eleven differs after rounding to bfloat16: the picture that RL leaves (most are equal). Timings do not depend on it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

VOCABULARY = 32_000
SHARD = 2_000_000_000
"""Bytes of a shard at most."""
SHAPES = {0.03: (512, 1024, 4), 0.58: (1536, 4096, 17), 2.3: (2560, 6912, 27)}
"""Width, MLP width and layers by billions of parameters."""


def tensors(billions: float) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a llama of about that size, its head of its own."""
    width, mlp, layers = SHAPES[billions]
    out: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, width)}
    for layer in range(layers):
        at = f"model.layers.{layer}"
        out |= {f"{at}.self_attn.{name}_proj.weight": (width, width) for name in ("q", "k", "v", "o")}
        out |= {f"{at}.mlp.{name}_proj.weight": (mlp, width) for name in ("gate", "up")}
        out |= {f"{at}.mlp.down_proj.weight": (width, mlp)}
        out |= {f"{at}.{name}_layernorm.weight": (width,) for name in ("input", "post_attention")}
    return out | {"model.norm.weight": (width,), "lm_head.weight": (VOCABULARY, width)}


def _bits(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """bfloat16 bits, rounded to nearest."""
    whole = values.view(np.uint32)
    return ((whole + 0x7FFF + ((whole >> 16) & 1)) >> 16).astype(np.uint16)


def values(count: int, seed: int) -> Iterator[tuple[NDArray[np.uint16], NDArray[np.uint16]]]:
    """Bits of the old and the new tensor, a piece at a time."""
    rng = np.random.default_rng(seed)
    for start in range(0, count, 1 << 22):
        n = min(1 << 22, count - start)
        old = _bits(rng.standard_normal(n, dtype=np.float32) * np.float32(0.02))
        wide = (old.astype(np.uint32) << 16).view(np.float32)
        moved = rng.random(n, dtype=np.float32) < 0.1
        noise = np.float32(0.02) * rng.standard_normal(n, dtype=np.float32)
        yield old, _bits(np.where(moved, wide * (1 + noise), wide))


def _shards(shapes: dict[str, tuple[int, ...]]) -> list[list[str]]:
    out: list[list[str]] = [[]]
    held = 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        if held + size > SHARD:
            out.append([])
            held = 0
        out[-1].append(name)
        held += size
    return out


def make(folder: Path, billions: float) -> tuple[Path, Path]:
    """The two checkpoints of one size under ``folder``, made if need be."""
    shapes = tensors(billions)
    pair = [folder / f"{billions:g}b" / side for side in ("old", "new")]
    if all((side / "config.json").is_file() for side in pair):
        return pair[0], pair[1]
    for side in pair:
        side.mkdir(parents=True, exist_ok=True)
    shards = _shards(shapes)
    placed: dict[str, str] = {}
    for k, names in enumerate(shards, 1):
        file = f"model-{k:05}-of-{len(shards):05}.safetensors"
        placed |= dict.fromkeys(names, file)
        header, end = {}, 0
        for name in names:
            start, end = end, end + 2 * int(np.prod(shapes[name]))
            header[name] = {"dtype": "BF16", "shape": list(shapes[name]), "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (pair[0] / file).open("wb") as old, (pair[1] / file).open("wb") as new:
            for side in (old, new):
                side.write(len(text).to_bytes(8, "little") + text)
            for seed, name in enumerate(names):
                for a, b in values(int(np.prod(shapes[name])), 1000 * k + seed):
                    old.write(a.tobytes())
                    new.write(b.tobytes())
    width, mlp, layers = SHAPES[billions]
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": width, "dtype": "bfloat16"}
    config |= {"num_hidden_layers": layers, "intermediate_size": mlp, "vocab_size": VOCABULARY}
    config |= {"num_attention_heads": width // 128, "num_key_value_heads": width // 128, "tie_word_embeddings": False}
    for side in pair:
        index = {"metadata": {"total_size": 2 * parameters(billions)}, "weight_map": placed}
        (side / "model.safetensors.index.json").write_text(json.dumps(index))
        (side / "config.json").write_text(json.dumps(config))
    return pair[0], pair[1]


def parameters(billions: float) -> int:
    """Exact number of parameters."""
    return sum(int(np.prod(shape)) for shape in tensors(billions).values())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make pairs of checkpoints for benchmarks.")
    parser.add_argument("dir", type=Path)
    parser.add_argument("--billions", type=float, nargs="+", default=[0.58], choices=list(SHAPES))
    given = parser.parse_args()
    for size in given.billions:
        print(*make(given.dir, size), f"{parameters(size) / 1e9:.3f}B parameters")
