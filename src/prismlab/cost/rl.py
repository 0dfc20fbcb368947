"""Memory of RL on one device: what stays for the whole run, then the larger of sampling and of the update.

What stays are float32 weights, AdamW's moments, the soft reference and, unless it sleeps, what vLLM was given of the
device. Sampling adds keys, values and states of the rows in flight and the logits of a token of each; the update adds
gradients, the activations of a backward pass (of responses at their longest), the loss and the step's responses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from prismlab.cost.memory import COMPUTE, RESERVED, Setting, layer_bytes, working_bytes
from prismlab.cost.operations import outputs
from prismlab.cost.shapes import Attention, Mamba, Shape

PROMPT = 1024
"""Tokens that a prompt is reckoned with, the study's 16,384 less its 15,360; no more than a response has, or the model
leaves: how long prompts are is not known beforehand."""
TOKENS_A_FORWARD = 65_536
"""Response tokens that one backward pass may hold; more are split by gradient accumulation."""
TOKENS_A_CHUNK = {"cpu": 2_048}
"""Tokens, padding included, that go through the model together: on a CPU few enough for its cache (on one core with a
model of 0.9M parameters 1,024 and 4,096 are slower)."""
TOKENS_A_CHUNK_ELSEWHERE = 16_384
"""The same on an accelerator."""
DENSE_VOCABULARY = 8_192
"""Up to this size of vocabulary all logits of a chunk are held; above it, trl's tiled head computes them piecewise."""
TILE = (4096, 32_768)
"""Tokens and words of a tile of that head."""
BATCH_ROWS = 256
"""Rows sampled side by side by default: on one CPU thread a step of a tiny model costs little less with fewer."""
CPU_CACHE_BYTES = 4 * 2**30
"""Keys and values of one batch on a CPU, at most: fixed, so that batches do not depend on what else runs there."""
GPU_SHARE = 0.4
"""Share of a GPU's free memory for keys and values of one batch; taking rows out of it copies them."""
ROOM = 1.25
"""Room ahead that buffers of keys and values have, at most."""
DRAWN = 24.0
"""Bytes of each logit while a token is drawn: float32 logits and log-probabilities, float64 weights and their sums."""
ZERO3_LIVE = 1e9
"""Gathered weights that DeepSpeed keeps at most, and of its buckets of gradients and weights on their way those of its
documented defaults: ``stage3_max_live_parameters``, ``reduce_bucket_size`` (twice, to overlap) and
``stage3_prefetch_bucket_size``."""
ZERO3_BUCKETS = 2 * 5e8 + 5e7


def rows_a_pass(total: int, max_new_tokens: int) -> int:
    """Rows a backward pass: the largest divisor of ``total`` that keeps to ``TOKENS_A_FORWARD`` tokens, at least 1."""
    fitting = max(1, TOKENS_A_FORWARD // max_new_tokens)
    return max(rows for rows in range(1, total + 1) if total % rows == 0 and rows <= fitting)


@dataclass(frozen=True, kw_only=True)
class RLSetting:
    """How RL is run, as far as its memory depends on it."""

    devices: int = 1
    responses: int
    """A step, over all devices."""
    max_new_tokens: int
    prompt: int
    """Tokens of a prompt."""
    precision: str = "float32"
    reference: bool = True
    """Whether a second model is held, for the KL penalty."""
    corrected: bool = True
    """Whether the truncated importance ratio is kept with the responses."""
    sharding: str = "none"
    """``none``, ``fsdp`` or ``zero3``."""
    adapter: int | None = None
    """Rank of the adapters that alone are trained; None for all weights."""
    sampler: str = "process"
    """``process``, ``colocate`` (vLLM on these devices), or elsewhere: ``vllm server``, ``server``."""
    vllm_share: float = 0.3
    """Of a device's memory, with ``colocate``."""
    vllm_parallel: int = 1
    vllm_length: int | None = None
    sleep: bool = False
    device: str = "cuda"

    @property
    def responses_each(self) -> int:
        """Responses a step of one device."""
        return self.responses // self.devices

    @property
    def rows_at_once(self) -> int:
        """Responses of one backward pass on one device."""
        return rows_a_pass(self.responses_each, self.max_new_tokens)

    @property
    def tokens(self) -> int:
        """Longest prompt and response together."""
        return self.prompt + self.max_new_tokens

    @property
    def shard(self) -> int:
        """Devices that share one copy of weights, reference, gradients and moments."""
        return 1 if self.sharding == "none" else self.devices

    @property
    def forward(self) -> Setting:
        """The setting of one chunk of a backward pass, by which its activations are reckoned."""
        chunk = TOKENS_A_CHUNK.get(self.device, TOKENS_A_CHUNK_ELSEWHERE)
        return Setting(
            devices=self.devices,
            shard=self.shard,
            rows=max(1, chunk // self.tokens) * self.devices,
            seq_len=self.tokens,
            precision=self.precision,
            checkpointing="none" if self.device == "cpu" else "full",
            masked=False,
            device=self.device,
        )


def rl_setting(shape: Shape, spec: Mapping[str, Any], devices: int, kind: str = "cuda") -> RLSetting:
    """The setting of an RL run (JSON of ``RLSpec``) on so many devices.

    A step's prompts are split evenly: where they cannot be, so many devices as divide them are reckoned with.
    """
    vllm, lora = spec.get("vllm"), spec.get("lora")
    prompts, longest = int(spec["prompts_per_step"]), int(spec["max_new_tokens"])
    used = max(n for n in range(1, min(devices, prompts) + 1) if prompts % n == 0)
    given: dict[str, Any] = {} if vllm is None else {"vllm_share": float(vllm["gpu_memory"]), "sleep": vllm["sleep"]}
    if vllm is not None:
        given |= {"vllm_parallel": int(vllm["tensor_parallel"]), "vllm_length": vllm["max_model_length"]}
    inside = "process" if spec.get("server") is None else "server"
    return RLSetting(
        devices=used,
        responses=prompts * int(spec["samples"]),
        max_new_tokens=longest,
        prompt=max(1, min(PROMPT, longest, shape.context - longest)),
        precision=str(spec["precision"]),
        reference=float(spec["kl_beta"]) > 0 and lora is None,
        corrected=spec["ratio_cap"] is not None,
        sharding=str(spec["sharding"]),
        adapter=None if lora is None else int(lora["rank"]),
        sampler=inside if vllm is None else "vllm server" if vllm["mode"] == "server" else "colocate",
        device=kind,
        **given,
    )


@dataclass(frozen=True, kw_only=True)
class RLMemory:
    """Bytes on one device at the peak of a step."""

    weights: float
    """float32 masters."""
    moments: float
    """AdamW's two."""
    reference: float
    compute: float
    """Weights in the compute type: gathered layers of a sharded model, or the casts of one that is whole."""
    vllm: float
    """What vLLM was given, while the model is trained."""
    vllm_sampling: float
    """The same while it samples; without ``sleep`` no other."""
    cache: float
    """Keys, values and states of the rows in flight."""
    drawing: float
    """Logits of one token of each of them."""
    gradients: float
    buffers: float
    """Gradients and weights on their way between devices."""
    activations: float
    loss: float
    rollouts: float
    """The step's responses with what is kept of each token."""
    reserved: float
    loading: float
    """At the start: each process has the whole model on its device before the weights are spread."""

    @property
    def stays(self) -> float:
        """What both phases have."""
        return self.weights + self.moments + self.reference + self.compute + self.reserved

    @property
    def sampling(self) -> float:
        """While responses are sampled."""
        return self.stays + self.vllm_sampling + self.cache + self.drawing

    @property
    def update(self) -> float:
        """While the model is trained."""
        passes = self.gradients + self.buffers + self.activations + self.loss + self.rollouts
        return self.stays + self.vllm + passes

    @property
    def total(self) -> float:
        """The largest of loading, sampling and update."""
        return max(self.loading, self.sampling, self.update)


def cache_bytes(shape: Shape, width: int) -> float:
    """Bytes of keys and values that a token of a row holds; a window's layer is counted in full."""
    return float(sum(2 * part.keys for part in shape.parts if isinstance(part, Attention)) * width)


def state_bytes(shape: Shape, width: int) -> float:
    """Bytes of the recurrent states of one row, however long it is: the scan's and the convolution's last inputs."""
    mambas = [part for part in shape.parts if isinstance(part, Mamba)]
    return float(sum(part.inner * part.state + part.conv * part.conv_width for part in mambas) * width)


def adapter_parameters(shape: Shape, rank: int) -> int:
    """Elements of adapters of every linear layer but the head: rank times what each reads and gives."""
    total = 0
    for part in shape.parts:
        pairs = outputs(part, shape.hidden)
        if shape.fused and len(pairs) == 3:  # Gate and up projection are one matrix.
            pairs = [(shape.hidden, 2 * pairs[0][1]), pairs[2]]
        total += sum(into + out for into, out in pairs)
    return rank * total


def _rows_in_flight(shape: Shape, setting: RLSetting, free: float | None) -> int:
    """Rows that the sampler in process takes side by side: what its share of the free memory bears."""
    row = setting.tokens * cache_bytes(shape, 4)
    room = CPU_CACHE_BYTES if setting.device == "cpu" else None if free is None else GPU_SHARE * max(0.0, free)
    most = min(BATCH_ROWS, setting.responses_each)
    return most if room is None or not row else max(1, min(most, int(room // row)))


def _cache(shape: Shape, setting: RLSetting, free: float | None) -> tuple[float, float]:
    """Cache of the rows in flight, and what drawing a token of each takes."""
    if setting.sampler != "process":
        return 0.0, 0.0
    rows, width = _rows_in_flight(shape, setting, free), COMPUTE[setting.precision]
    # State-space layers keep their state in float32 under autocast.
    each = ROOM * setting.tokens * cache_bytes(shape, width) + state_bytes(shape, 4)
    return rows * each, rows * shape.vocab * (DRAWN + width)


def vllm_least(shape: Shape, setting: RLSetting) -> float:
    """Bytes that vLLM needs of a device to start: its bf16 weights and the cache of one row at its longest."""
    length = setting.vllm_length or shape.context
    whole = 2.0 * shape.parameters + length * cache_bytes(shape, 2) + state_bytes(shape, 2)
    return whole / setting.vllm_parallel


def _vllm(shape: Shape, setting: RLSetting, limit: float | None) -> float:
    if setting.sampler != "colocate":
        return 0.0
    least = vllm_least(shape, setting)
    return least if limit is None else max(least, setting.vllm_share * limit)


def _activations(shape: Shape, setting: RLSetting) -> float:
    """Kept for the backward pass of all rows of a pass, and one chunk of one layer that is gone through backwards.

    A layer's input is kept of every token where activations are computed again; else all that the layers keep.
    """
    forward, tokens = setting.forward, setting.rows_at_once * setting.tokens
    each = [layer_bytes(shape, layer, forward) for layer in shape.layers]
    chunk = min(tokens, forward.tokens)
    working = chunk * working_bytes(shape, forward)
    if forward.checkpointing == "none":
        return tokens * sum(each) + working
    return tokens * 4.0 * shape.hidden * len(each) + chunk * max(each) + working


def _loss(shape: Shape, setting: RLSetting) -> float:
    """All logits with log-probabilities and a gradient, or what trl's tiled head has: its inputs and their gradients, a
    tile, the weights of one, and a float32 gradient of the whole head, which adapters do not need."""
    c, responses = COMPUTE[setting.precision], setting.rows_at_once * setting.max_new_tokens
    if shape.vocab <= DENSE_VOCABULARY:
        return responses * shape.vocab * (12.0 if c == 4 else 8.0 + c)
    tokens, words = min(TILE[0], responses), min(TILE[1], shape.vocab)
    chunk = min(responses, setting.forward.tokens)
    head = 0.0 if setting.adapter is not None else 4.0 * shape.embedding
    return c * float(words * (tokens + shape.hidden)) + head + 4.0 * shape.hidden * (responses + chunk)


def _rollouts(setting: RLSetting) -> float:
    """Ids and masks, log-probabilities of sampler, reference and, with vLLM, trainer and the ratio; twice, shuffled."""
    columns = 1 if setting.corrected else 0
    if setting.sampler in ("colocate", "vllm server") and setting.corrected:
        columns += 2
    columns += 1 if setting.reference or setting.adapter is not None else 0
    return 2.0 * setting.responses_each * (16 * setting.tokens + 4 * columns * setting.max_new_tokens)


def _gathered(shape: Shape, setting: RLSetting, trained: int) -> tuple[float, float]:
    """Weights to compute with and buffers, as the sharding has them."""
    c = COMPUTE[setting.precision]
    casts = 0.0
    if c == 2:
        casts = float(c * sum(part.projections(shape.hidden) for part in shape.parts) + c * shape.embedding)
    if setting.sharding == "none":
        # Gradients are averaged in buckets of their own.
        return casts, 4.0 * trained if setting.devices > 1 else 0.0
    if setting.sharding == "zero3":
        return c * min(float(shape.parameters), ZERO3_LIVE), c * min(float(2 * shape.parameters), ZERO3_BUCKETS)
    largest = max(shape.layer_parameters(layer) for layer in shape.layers)
    buffers = (2.0 * c + 4.0) * largest + 4.0 * shape.root
    if setting.responses_each > setting.rows_at_once:
        buffers += 4.0 * (trained - min(trained, shape.root))  # Summed over passes before they are sent: whole.
    return c * (3.0 * largest + shape.embedding) + 4.0 * shape.root, buffers


def rl_memory(shape: Shape, setting: RLSetting, limit: float | None = None) -> RLMemory:
    """Bytes on one device at the peak of an RL step.

    Args:
        shape: the model.
        setting: how it is run.
        limit: bytes of the device, of which vLLM and the sampler in process take shares; None where it is not known.
    """
    n, shard = shape.parameters, setting.shard
    trained = n if setting.adapter is None else adapter_parameters(shape, setting.adapter)
    weights = 4.0 * (n if setting.adapter is None else n + trained)
    compute, buffers = _gathered(shape, setting, trained)
    vllm = _vllm(shape, setting, limit)
    found = RLMemory(
        weights=weights / shard,
        moments=8.0 * trained / shard,
        reference=4.0 * n / shard if setting.reference else 0.0,
        compute=compute,
        vllm=0.0 if setting.sleep else vllm,
        vllm_sampling=vllm,
        cache=0.0,
        drawing=0.0,
        gradients=4.0 * trained / shard,
        buffers=buffers,
        activations=_activations(shape, setting),
        loss=_loss(shape, setting),
        rollouts=_rollouts(setting),
        reserved=RESERVED[setting.device],
        loading=4.0 * n + RESERVED[setting.device],
    )
    cache, drawing = _cache(shape, setting, None if limit is None else limit - found.stays)
    return replace(found, cache=cache, drawing=drawing)
