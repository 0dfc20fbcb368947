"""Samplers over HTTP.

:class:`CompletionsSampler` speaks to any server with OpenAI's ``/v1/completions``: text in, text out. What it may not
give (several samples a request, token ids, log-probabilities) is asked for, and recorded as missing where it does not
come; that is enough for scoring and evaluation. :class:`TokenSampler` speaks to a server that takes token ids, tells
the log-probability of each token and takes new weights (SGLang's own interface), which RL needs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from prismlab.errors import StageError, shown
from prismlab.model.generate import Completion, SamplingSettings, seeds_of, stop_token
from prismlab.model.wire import Refused, Wire, in_parallel
from prismlab.run.step import Progress
from prismlab.seeds import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

AT_A_TIME = 32
"""Requests under way: a server batches them, and what it cannot take yet it answers with "later"."""
SEEDS = 2**31
"""Servers take seeds below this."""


class CompletionsSampler:
    """Samples with a server that has ``/v1/completions``.

    Random numbers are the server's: each request carries a seed of its own, which not every server keeps to.

    Args:
        wire: the server.
        model: what it calls the model; of ``transformers serve`` the checkpoint's folder.
        tokenizer: the model's: prompts travel as text.
        at_a_time: requests under way.
    """

    def __init__(self, wire: Wire, model: str, tokenizer: PreTrainedTokenizerBase, at_a_time: int = AT_A_TIME) -> None:
        self._wire, self._model, self._tokenizer, self._at_a_time = wire, model, tokenizer, at_a_time
        self._stop = stop_token(tokenizer)
        self.missing: set[str] = set()
        """What was asked for and did not come: ``n``, ``logprobs``, ``return_token_ids``, ``generation_config``."""
        self._told = False

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        n: int,
        settings: SamplingSettings,
        seed: int | Sequence[int],
        progress: Progress | None = None,
    ) -> list[list[Completion]]:
        """See ``generate.Sampler``; log-probabilities, and token ids, are only there where the server gives them.

        Raises:
            StageError: the server fails or refuses, or a prompt is not the same tokens once it was text.
        """
        texts = [self._text(place, list(ids)) for place, ids in enumerate(prompts)]
        seeds = seeds_of(len(prompts), seed, derive_seed)
        done: list[list[Completion]] = [[] for _ in prompts]
        if not texts:
            return done
        # The first prompt alone, so that what the server cannot do is found out once.
        done[0] = self._group(texts[0], n, settings, seeds[0])
        self._tell(progress, n)
        jobs = list(range(1, len(texts)))
        for place, group in in_parallel(
            lambda at: self._group(texts[at], n, settings, seeds[at]), jobs, self._at_a_time
        ):
            done[jobs[place]] = group
            if progress is not None:
                progress.advance(n)
        return done

    def _text(self, place: int, ids: list[int]) -> str:
        """A prompt as text that the server will read as the very same tokens."""
        text = str(self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        for one in (text, text.removeprefix(str(self._tokenizer.bos_token or ""))):
            if list(cast("list[int]", self._tokenizer(one)["input_ids"])) == ids:
                return one
        raise StageError(
            f"prompt {place} is not the same tokens to a server that takes text (it spells a special token, or the "
            "tokenizer does not give back what it decoded); leave it out, or sample in process"
        )

    def _tell(self, progress: Progress | None, n: int) -> None:
        if progress is None:
            return
        progress.advance(n)
        lost = {"logprobs": "log-probabilities", "return_token_ids": "token ids"}
        names = [word for key, word in lost.items() if key in self.missing]
        if names and not self._told:
            self._told = True
            progress.note(f"the server tells no {' and no '.join(names)}: they are null in the rows")

    def _body(self, text: str, n: int, settings: SamplingSettings, seed: int) -> dict[str, Any]:
        optional: dict[str, Any] = {
            "n": n,
            "logprobs": 1,
            "return_token_ids": True,
            # "transformers serve" is greedy unless it is told so, and reads "temperature" in vain.
            "generation_config": json.dumps(
                {
                    "do_sample": settings.temperature > 0,
                    "temperature": settings.temperature or None,
                    "top_p": settings.top_p,
                    "top_k": 0,
                    "max_new_tokens": settings.max_new_tokens,
                    "eos_token_id": self._stop,
                    "pad_token_id": self._stop,
                }
            ),
        }
        return {
            "model": self._model,
            "prompt": text,
            "max_tokens": settings.max_new_tokens,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "seed": seed % SEEDS,
            **{key: value for key, value in optional.items() if key not in self.missing},
        }

    def _group(self, text: str, n: int, settings: SamplingSettings, seed: int) -> list[Completion]:
        """``n`` completions of one prompt, in as many requests as it takes."""
        found: list[Completion] = []
        while len(found) < n:
            asked = 1 if "n" in self.missing else n - len(found)
            answer = self._asked(text, asked, settings, derive_seed(seed, len(found)))
            choices = answer.get("choices") if isinstance(answer, dict) else None
            if not choices or not isinstance(choices, list):
                raise StageError(f"{self._wire.url}: an answer without 'choices'; is it a server of /v1/completions?")
            if len(choices) < asked:
                self.missing.add("n")
            usage = answer.get("usage")
            count = usage.get("completion_tokens") if isinstance(usage, dict) and len(choices) == 1 else None
            found += [self._completion(choice, count, settings) for choice in choices[:asked]]
        return found

    def _asked(self, text: str, n: int, settings: SamplingSettings, seed: int) -> Any:
        """An answer, after leaving out whatever optional fields the server says it does not know."""
        while True:
            body = self._body(text, n, settings, seed)
            try:
                return self._wire.post("/v1/completions", body)
            except Refused as error:
                optional = ("return_token_ids", "generation_config", "logprobs", "n")
                unknown = [key for key in optional if key in body and f"'{key}'" in error.text.replace('"', "'")]
                if error.status not in (400, 422) or not unknown:
                    raise
                self.missing.update(unknown)

    def _completion(self, choice: Any, usage: Any, settings: SamplingSettings) -> Completion:
        """One response; what is optional may be missing, but nothing may be other than it says."""
        told: Mapping[str, Any] = choice if isinstance(choice, dict) else {}
        text, reason = told.get("text"), told.get("finish_reason")
        if not isinstance(text, str):
            raise StageError(f"{self._wire.url}: a choice without a 'text'; is it a server of /v1/completions?")
        finished = _whole(reason, self._wire.url)
        logs = told.get("logprobs")
        logprobs = _logprobs(logs.get("token_logprobs") if isinstance(logs, dict) else None, self._wire.url)
        ids = _token_ids(told.get("token_ids"), self._wire.url)
        if ids is not None and logprobs is not None and len(ids) != len(logprobs):
            raise StageError(f"{self._wire.url}: {len(ids)} token ids, but {len(logprobs)} log-probabilities")
        if logprobs is None:
            self.missing.add("logprobs")
        if ids is None:
            self.missing.add("return_token_ids")
        count = usage if isinstance(usage, int) and usage >= 0 else None
        if ids is None and count is None:
            count = len(self._tokenizer(text, add_special_tokens=False)["input_ids"]) + finished
        return Completion(
            token_ids=ids or [],
            text=text,
            # Servers tell those of the distribution sampled from or of the model's own; at temperature 1 they agree.
            logprobs=logprobs if settings.temperature == 1 and settings.top_p == 1 else None,
            sampler_logprobs=None,
            finished=finished,
            counted=count if ids is None else None,
        )


ENDS = {"stop": True, "eos_token": True, "length": False}
"""How servers say that a response ended, and whether it was by its stop token."""


def _whole(reason: Any, url: str) -> bool:
    """Whether a response ended by its stop token.

    Raises:
        StageError: it ended otherwise, or it is not said how; what was given up on is no response of the model.
    """
    if not isinstance(reason, str) or reason not in ENDS:
        raise StageError(
            f"{url}: a response that ended by {shown(repr(reason), 40)}, neither by 'stop' nor by 'length': it would "
            "count as the model's own; see the server's log, then run the same command again to go on"
        )
    return ENDS[reason]


def _logprobs(told: Any, url: str) -> list[float] | None:
    """Log-probabilities of a response, one a token; None where there are none.

    Raises:
        StageError: what is there is no list of finite numbers; NaN mostly means broken weights.
    """
    if told is None:
        return None
    good = isinstance(told, list) and all(
        isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one) for one in told
    )
    if not good:
        raise StageError(f"{url}: log-probabilities that are no finite numbers: {shown(repr(told), 80)}")
    return [float(one) for one in told]


def _token_ids(told: Any, url: str) -> list[int] | None:
    """Token ids of a response; None where there are none.

    Raises:
        StageError: what is there is no list of token ids.
    """
    if told is None:
        return None
    if not isinstance(told, list) or not all(type(one) is int and one >= 0 for one in told):
        raise StageError(f"{url}: token ids that are none: {shown(repr(told), 80)}")
    return list(told)


def served_sampler(
    config: Mapping[str, Any], folder: Path, tokenizer: PreTrainedTokenizerBase
) -> CompletionsSampler | None:
    """The sampler that a stage's spec names as ``server``; None where it names none.

    Args:
        config: of the stage; ``files`` holds the server's address.
        folder: of the checkpoint, by which the server knows it.
        tokenizer: the checkpoint's.
    """
    if config["spec"].get("server") is None:
        return None
    (url,) = config["files"]["server"]
    return CompletionsSampler(Wire(url), str(folder.resolve()), tokenizer)


class TokenSampler:
    """Samples with a server that takes and tells token ids: SGLang's ``/generate`` and ``/update_weights_from_disk``.

    Args:
        wire: the server.
        tokenizer: the model's, for the text of responses.
        at_a_time: requests under way.
    """

    def __init__(self, wire: Wire, tokenizer: PreTrainedTokenizerBase, at_a_time: int = AT_A_TIME) -> None:
        self._wire, self._tokenizer, self._at_a_time = wire, tokenizer, at_a_time
        self._stop = stop_token(tokenizer)

    def take_weights(self, folder: Path) -> None:
        """Have the server load new weights from a folder that it can see too.

        Raises:
            StageError: it did not.
        """
        answer = self._wire.post("/update_weights_from_disk", {"model_path": str(folder)})
        if not isinstance(answer, dict) or not answer.get("success"):
            why = answer.get("message", "") if isinstance(answer, dict) else ""
            raise StageError(f"{self._wire.url} did not take the weights in {folder}: {why or 'it does not say why'}")

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        n: int,
        settings: SamplingSettings,
        seed: int | Sequence[int],
        progress: Progress | None = None,
    ) -> list[list[Completion]]:
        """See ``generate.Sampler``. Log-probabilities of the sampler are told at temperature 1 and top-p 1 alone.

        Raises:
            StageError: the server fails, or its answer lacks token ids or log-probabilities.
        """
        seeds = seeds_of(len(prompts), seed, derive_seed)
        jobs = [(place, s) for place in range(len(prompts)) for s in range(n)]
        found: list[list[Completion | None]] = [[None] * n for _ in prompts]

        def one(job: tuple[int, int]) -> Completion:
            return self._one(list(prompts[job[0]]), settings, derive_seed(seeds[job[0]], job[1]))

        for at, completion in in_parallel(one, jobs, self._at_a_time):
            found[jobs[at][0]][jobs[at][1]] = completion
            if progress is not None:
                progress.advance(1)
        return [[one for one in group if one is not None] for group in found]

    def _one(self, prompt: list[int], settings: SamplingSettings, seed: int) -> Completion:
        body = {
            "input_ids": prompt,
            "return_logprob": True,
            "sampling_params": {
                "temperature": settings.temperature,
                "top_p": settings.top_p,
                "max_new_tokens": settings.max_new_tokens,
                "stop_token_ids": [self._stop],
                "skip_special_tokens": False,
                "sampling_seed": seed % SEEDS,
            },
        }
        ids, logprobs = self._told(self._wire.post("/generate", body), settings)
        finished = ids[-1] == self._stop
        spoken = ids[:-1] if finished else ids
        text = str(self._tokenizer.decode(spoken, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        plain = settings.temperature == 1 and settings.top_p == 1
        return Completion(
            token_ids=ids,
            text=text,
            logprobs=logprobs if plain else None,
            sampler_logprobs=logprobs if plain else None,
            finished=finished,
        )

    def _told(self, answer: Any, settings: SamplingSettings) -> tuple[list[int], list[float]]:
        """Token ids and log-probabilities of an answer."""
        url = self._wire.url
        about = answer.get("meta_info") if isinstance(answer, dict) else None
        told = about.get("output_token_logprobs") if isinstance(about, dict) else None
        pairs = isinstance(told, list) and all(isinstance(one, list) and len(one) > 1 for one in told)
        if not told or not pairs or any(one[0] is None for one in told):
            raise StageError(f"{url}: an answer without token ids and log-probabilities, which RL needs")
        ended = about.get("finish_reason") if isinstance(about, dict) else None
        if ended is not None:
            _whole(ended.get("type") if isinstance(ended, dict) else ended, url)
        ids, logprobs = _token_ids([one[1] for one in told], url), _logprobs([one[0] for one in told], url)
        if len(ids or ()) > settings.max_new_tokens:
            raise StageError(f"{url}: a response of {len(ids or ())} tokens, {settings.max_new_tokens} were asked for")
        return ids or [], logprobs or []
