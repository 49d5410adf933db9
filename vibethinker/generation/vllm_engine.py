"""vLLM in this process as an engine: the fast way on a GPU.

Each (prompt, sample) pair is a request of its own with a seed of its own; vLLM schedules them, shares the cache of
equal prompts and takes in the next as soon as one has ended. Weights keep the type that they are stored in, prompts and
completions are as long as the model's positions allow, and text is decoded as `TransformersEngine` does it.

The engine's core is stepped here, without vLLM's front end, whose work for each token in Python (detokenisation,
objects of log-probabilities) takes about as long as a small model on a large GPU.

Weights are swapped by the model's own `load_weights`, which writes into the tensors that CUDA graphs know. What an
earlier call cached of a prompt is never used again, since weights may have changed: every call salts its prompts.

Reproducible: a request's random numbers depend on the seed, its prompt's index and its sample's index. The logits
depend on the batch, and that is the same for the same arguments, since requests are scheduled in this process and none
is left over from an earlier call; another `batch`, GPU or version of vLLM can give other completions, and
`TransformersEngine` always does. Opening seeds this process's global random numbers anew.

Left out: an engine over several GPUs, quantised models and mixtures of experts; see `vllm_start`.
"""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from vibethinker.errors import ConfigurationError, InfrastructureError
from vibethinker.generation import Completion, Ended, Progress, check, check_sequences, stop_tokens
from vibethinker.generation.meter import Meter
from vibethinker.generation.vllm_start import configured_stops, start, stop
from vibethinker.models import ModelWeights, check_model_folder, is_adapter, load_state, load_tokenizer

_REPORT_STEPS = 64
_TEMPERATURES = (0.01, 2.0)  # vLLM raises lower ones, without an error, and refuses higher ones
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclass
class _Open:
    """A request under way: where its completion belongs, and what has been generated."""

    index: int
    sample: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


@contextmanager
def _collecting_rarely() -> Iterator[None]:
    """Without Python's own garbage collection: a step makes thousands of objects, which start it several times, and a
    small model's steps are bound by what Python does."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class VllmEngine:
    """Samples with a vLLM engine that it starts; see the module for how.

    Args:
        folder: a model folder, or an adapter folder, which is merged into `base`. Its tokenizer (an adapter's base's)
            decodes completions and names the end-of-sequence token, beside the generation config.
        tokenizer: the folder's, where it is loaded already.
        batch: sequences decoded at once, where the GPU's memory holds their cache.
        memory: the share of the GPU's memory that vLLM takes at once.
        sleeps: whether `sleep` gives the memory back.
        eager: start without compiling and without CUDA graphs.
        max_length: the longest prompt and completion together, in tokens, where completions end at the latest; None:
            the model's positions, or as much of them as the memory holds.
        neighbours: whether other processes compute on the same GPU.

    Attributes:
        tokenizer, meter: see `Engine`.

    Raises:
        ConfigurationError: a folder is incomplete, or an adapter lacks its base; vLLM isn't installed, finds no GPU or
            can't run this model; or neither the tokenizer nor the generation config names an end-of-sequence token.
    """

    def __init__(
        self,
        folder: Path,
        *,
        base: Path | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        batch: int = 256,
        memory: float = 0.9,
        sleeps: bool = False,
        eager: bool = False,
        max_length: int | None = None,
        neighbours: bool = False,
    ) -> None:
        check_model_folder(folder)
        whole = base if is_adapter(folder) and base is not None else folder
        self.tokenizer = tokenizer or load_tokenizer(whole)
        self.meter = Meter()
        self._stops = stop_tokens(self.tokenizer, configured_stops(whole))
        self._sleeps, self._calls = sleeps, 0
        self._names = {name for name in ModelWeights(whole) if "rotary_emb." not in name}
        self._llm, self._positions = start(
            whole, batch=batch, memory=memory, sleeps=sleeps, eager=eager, max_length=max_length, neighbours=neighbours
        )
        try:
            self.load(folder, base)
        except BaseException:
            self.close()
            raise

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        samples: int,
        max_tokens: int,
        temperature: float,
        top_p: float,
        seed: int,
        first: int = 0,
        logprobs: bool = False,
        progress: Progress | None = None,
        ended: Ended | None = None,
        known: Collection[tuple[int, int]] = (),
    ) -> list[list[Completion]]:
        """See `Engine.generate`. A prompt that fills the longest sequence gives empty, truncated completions.

        Raises:
            ValueError: a prompt is empty, samples or max_tokens < 1, temperature < 0 or top_p outside (0, 1].
            ConfigurationError: vLLM can't sample at this temperature.
            InfrastructureError: vLLM gave a request up.
        """
        check(prompts, samples, max_tokens, temperature, top_p)
        low, high = _TEMPERATURES
        if temperature and not low <= temperature <= high:
            raise ConfigurationError(f"vLLM samples at a temperature from {low} to {high} or at 0, not {temperature}.")
        from vllm import SamplingParams

        report = progress or (lambda done, total: None)
        generated = [[Completion("", 0, True, (), () if logprobs else None)] * samples for _ in prompts]
        total, done = len(prompts) * samples, len(known)

        def end(index: int, sample: int, completion: Completion) -> None:
            nonlocal done
            done += 1
            generated[index][sample] = completion
            self.meter.add(completion.tokens)
            if ended:
                ended(index, sample, completion)

        def finished(one: _Open, output: Any) -> None:
            end(one.index, one.sample, self._completion(one, output, logprobs))

        def asked() -> Iterator[tuple[_Open, list[int], SamplingParams]]:
            for index, prompt in enumerate(prompts):
                for sample in range(samples):
                    if (index, sample) in known:
                        continue
                    if len(prompt) >= self._positions:  # vLLM would refuse it
                        end(index, sample, generated[index][sample])
                        continue
                    yield (
                        _Open(index, sample),
                        list(prompt),
                        SamplingParams(
                            temperature=temperature,
                            top_p=top_p,
                            max_tokens=min(max_tokens, self._positions - len(prompt)),
                            seed=_seed(seed, first + index, sample),
                            stop_token_ids=self._stops,
                            logprobs=0 if logprobs else None,
                            detokenize=False,
                            skip_clone=True,
                        ),
                    )

        with self.meter.running():
            self._run(asked(), finished, lambda: report(done, total))
        return generated

    def score(self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
        """See `Engine.score`: a prefill of each sequence. Its last token is no part of it, but asked for as one that
        may follow, so that a sequence may fill the positions."""
        check_sequences(sequences, self._positions)
        from vllm import SamplingParams

        scored: list[list[float]] = [[] for _ in sequences]

        def asked() -> Iterator[tuple[_Open, list[int], SamplingParams]]:
            for index, (prompt, completion) in enumerate(sequences):
                if not len(completion):
                    continue
                *before, last = [*prompt, *completion]
                yield (
                    _Open(index, 0),
                    before,
                    SamplingParams(
                        max_tokens=1,
                        seed=0,
                        prompt_logprobs=0,
                        logprob_token_ids=[last],
                        detokenize=False,
                        skip_clone=True,
                    ),
                )

        def finished(one: _Open, output: Any) -> None:
            within = output.new_prompt_logprobs_tensors
            values = [] if within is None else within.logprobs[:, 0].tolist()
            values.append(float(output.new_logprobs.logprobs[0, 1]))
            scored[one.index] = values[-len(sequences[one.index][1]) :]

        self._run(asked(), finished, lambda: None)
        return scored

    def update(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """See `Engine.update`. Of tied embeddings the input's has to be given."""
        given: set[str] = set()

        def detached() -> Iterator[tuple[str, torch.Tensor]]:
            for name, tensor in weights:
                given.add(name)
                yield name, tensor.detach()  # vLLM marks the tensors that it is given

        torch.cuda.synchronize()  # trainer and vLLM compute on streams of their own
        with torch.no_grad():
            try:
                [tied] = self._llm.apply_model(lambda model: (model.load_weights(detached()), _tied(model))[1])
            except AssertionError as error:
                raise ValueError(f"a weight has another shape than the engine's ({error})") from error
        torch.cuda.synchronize()
        missing = sorted(self._names - given - ({_HEAD} if tied and _EMBEDDING in given else set()))
        if missing:
            raise ValueError(f"{len(missing)} weights of the engine's model were not given, {missing[0]} first")

    def load(self, folder: Path, base: Path | None = None) -> None:
        """See `Engine.load`."""
        self.update(load_state(folder, base).items())

    def sleep(self) -> None:
        """See `Engine.sleep`: weights wait in the host's memory, the cache is forgotten.

        Discarding the weights too (vLLM's level 2) would save a copy of them, but also loses the sampler's tensors,
        which vLLM allocates among the weights and doesn't restore.
        """
        if self._sleeps and not self._llm.llm_engine.is_sleeping():
            self._llm.llm_engine.sleep(level=1)

    def wake(self) -> None:
        """See `Engine.wake`."""
        if self._sleeps and self._llm.llm_engine.is_sleeping():
            gc.collect()
            torch.cuda.empty_cache()  # what the trainer has freed goes back to the GPU first
            self._llm.llm_engine.wake_up()

    def close(self) -> None:
        """Free the GPU's memory; after that the engine can't be used."""
        stop(self._llm)
        del self._llm
        gc.collect()
        torch.cuda.empty_cache()

    @_collecting_rarely()
    def _run(
        self,
        requests: Iterable[tuple[_Open, list[int], Any]],
        finished: Callable[[_Open, Any], None],
        report: Callable[[], None],
    ) -> None:
        """Have the core work off the requests; `finished` gets each with the output that ended it."""
        from vllm.inputs import tokens_input

        engine = self._llm.llm_engine
        core, inputs, tasks = engine.engine_core, engine.input_processor, engine.get_supported_tasks()
        self._calls += 1
        salt = str(self._calls)
        open_: dict[str, _Open] = {}
        while core.engine_core.batch_queue:  # the last call's step ahead of what it was asked for
            core.get_output()
        try:
            for one, prompt, sampling in requests:
                name = f"{salt}/{one.index}/{one.sample}"
                prompt_input = tokens_input(prompt, cache_salt=salt)
                core.add_request(inputs.process_inputs(name, prompt_input, sampling, tasks))
                open_[name] = one
            report()
            steps = 0
            while open_:
                ends = 0
                for output in core.get_output().outputs:
                    if output.request_id not in open_:
                        continue
                    one = open_[output.request_id]
                    one.ids += output.new_token_ids
                    if output.new_logprobs is not None:
                        one.logprobs += output.new_logprobs.logprobs[:, 0].tolist()
                    if output.finish_reason is not None:
                        del open_[output.request_id]
                        finished(one, output)
                        ends += 1
                steps += 1
                if ends or steps % _REPORT_STEPS == 0:
                    report()
                if steps % _REPORT_STEPS == 0:
                    gc.collect(1)
        finally:
            core.abort_requests(list(open_))  # those that an error left behind would run in the next call

    def _completion(self, one: _Open, output: Any, logprobs: bool) -> Completion:
        reason = str(output.finish_reason)
        if reason not in ("stop", "length"):
            raise InfrastructureError(f"vLLM gave a request up ({reason}): see the step's log.")
        text = self.tokenizer.decode(one.ids, skip_special_tokens=True)
        likely = tuple(one.logprobs) if logprobs else None
        return Completion(text, len(one.ids), reason != "stop", tuple(one.ids), likely)


def _tied(model: Any) -> bool:
    return bool(getattr(model.config, "tie_word_embeddings", False))


def _seed(seed: int, index: int, sample: int) -> int:
    """A request's seed; vLLM keeps seeds as signed 64-bit numbers, of which -1 means none."""
    digest = hashlib.sha256(f"{seed}/{index}/{sample}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
