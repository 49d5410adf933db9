"""The engine that needs transformers alone: a lean decoding loop for any causal model with a key-value cache.

Sequences, each a (prompt, sample) pair, are sorted by prompt length, the longest first, and decoded in
batches, padded on the left. A prompt is prefilled once a batch and its cache row copied for its samples;
finished rows leave the batch. Next tokens come from `sampling`, attention over the cache from `attention`.
For a model of 0.4 M parameters on a CPU this takes about half the time of `generate` on the same tokens, and
less where completions end early.

Reproducible: the random numbers of a sequence depend on the seed, its prompt's index and its sample's index
only. The logits don't: another batch size or other neighbours change the order of additions, so a result can
differ where two tokens are all but equally likely. The same arguments and batch size on the same machine give
the same result.

Left out: refilling a batch while it runs, speculative decoding, CUDA graphs; use vLLM where it is installed.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from vibethinker.generation import Completion, Ended, Progress, check, check_sequences, stop_tokens
from vibethinker.generation.attention import grouped_attention
from vibethinker.generation.meter import Meter
from vibethinker.generation.sampling import UniformStreams, draw
from vibethinker.models import load_state

Row = tuple[int, int]  # prompt index, sample index

_REPORT_STEPS = 64
_KEPT_SHARE = 0.875  # copying the cache costs about as much as a decoding step
_SCORED_LOGITS = 2**28  # computed at once; 1 GiB in float32


@dataclass(frozen=True)
class _Sampling:
    max_tokens: int
    temperature: float
    top_p: float
    seed: int
    first: int
    logprobs: bool


class TransformersEngine:
    """Decodes with a loaded model on whatever device it is; see the module for how.

    Args:
        model: a causal language model; a PEFT model works too.
        tokenizer: decodes completions and names the end-of-sequence token, beside the model's generation
            config.
        batch: sequences decoded at once.
        owned: whether nobody else changes the model. Else it is the very model in training: `update` has nothing to
            do, and `close` leaves it alone.

    Attributes:
        tokenizer, meter: see `Engine`.

    Raises:
        ConfigurationError: neither the tokenizer nor the generation config names an end-of-sequence token.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: int = 256, *, owned: bool = False
    ) -> None:
        self._model = model
        self.tokenizer = tokenizer
        self.meter = Meter()
        self._batch, self._owned = batch, owned
        self._stops = stop_tokens(tokenizer, model.generation_config.eos_token_id)
        self._positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)

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
        known: Collection[Row] = (),
    ) -> list[list[Completion]]:
        """See `Engine.generate`. A prompt that fills the model's positions gives empty, truncated
        completions. What is known is left out by whole batches only, so that the others keep their neighbours.

        Raises:
            ValueError: a prompt is empty, samples or max_tokens < 1, temperature < 0 or top_p outside (0, 1].
        """
        check(prompts, samples, max_tokens, temperature, top_p)
        report = progress or (lambda done, total: None)
        generated = [[Completion("", 0, True, (), () if logprobs else None)] * samples for _ in prompts]
        order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
        fits = [index for index in order if self._positions is None or len(prompts[index]) < self._positions]
        sequences: list[Row] = [(index, sample) for index in fits for sample in range(samples)]

        def end(row: Row, ids: list[int], logs: list[float] | None) -> None:
            index, sample = row
            generated[index][sample] = self._completion(ids, logs)
            self.meter.add(len(ids))
            if ended:
                ended(index, sample, generated[index][sample])

        total = len(prompts) * samples
        done = total - len(sequences)
        sampling = _Sampling(max_tokens, temperature, top_p, seed, first, logprobs)
        for index in set(order).difference(fits):
            for sample in range(samples):
                end((index, sample), [], [] if logprobs else None)
        with self.meter.running(), self._inference(), grouped_attention(self._model):
            for start in range(0, len(sequences), self._batch):
                rows = sequences[start : start + self._batch]
                if known and all(row in known for row in rows):
                    done += len(rows)
                    continue

                def further(finished: int, done: int = done) -> None:
                    report(done + finished, total)

                self._decode(prompts, rows, sampling, end, further)
                done += len(rows)
                report(done, total)
        return generated

    def score(self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
        """See `Engine.score`: a forward pass over padded batches of sequences of about the same length."""
        check_sequences(sequences, self._positions)
        scored: list[list[float]] = [[] for _ in sequences]
        order = [i for i in range(len(sequences)) if len(sequences[i][1])]
        order.sort(key=lambda i: (-len(sequences[i][0]) - len(sequences[i][1]), i))
        vocabulary = self._model.config.get_text_config().vocab_size
        with self._inference():
            while order:
                prompt, completion = sequences[order[0]]
                rows = max(1, _SCORED_LOGITS // (vocabulary * (len(prompt) + len(completion))))
                for i, values in zip(order[:rows], self._score([sequences[i] for i in order[:rows]]), strict=True):
                    scored[i] = values
                del order[:rows]
        return scored

    def _score(self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
        ids, mask = self._padded([[*prompt, *completion] for prompt, completion in sequences])
        logits = self._model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            use_cache=False,
            logits_to_keep=1 + max(len(completion) for _, completion in sequences),
        ).logits
        found = []
        for row, tokens, (_, completion) in zip(logits, ids, sequences, strict=True):
            count = len(completion)
            found.append(_likelihood(row[-count - 1 : -1], tokens[-count:]).tolist())
        return found

    def update(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """See `Engine.update`."""
        if self._owned:
            self._copy(weights)

    def load(self, folder: Path, base: Path | None = None) -> None:
        """See `Engine.load`."""
        self._copy(load_state(folder, base).items())

    def _copy(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        state = self._model.state_dict()
        rest = {tensor.data_ptr() for tensor in state.values()}  # tied ones share theirs
        with torch.no_grad():
            for name, tensor in weights:
                if name not in state or state[name].shape != tensor.shape:
                    raise ValueError(f"{name} of shape {tuple(tensor.shape)} is no weight of the engine's model")
                state[name].copy_(tensor)
                rest.discard(state[name].data_ptr())
        if rest:
            missing = next(name for name, tensor in state.items() if tensor.data_ptr() in rest)
            raise ValueError(f"{len(rest)} weights of the engine's model were not given, {missing} first")

    def sleep(self) -> None:
        """Does nothing: all that this engine holds between two generations are the model's weights."""

    def wake(self) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Free the model if it is this engine's own."""
        del self._model
        if self._owned:
            gc.collect()
            torch.cuda.empty_cache()

    @contextmanager
    def _inference(self) -> Iterator[None]:
        was_training = self._model.training
        self._model.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            self._model.train(was_training)

    def _decode(
        self,
        prompts: Sequence[Sequence[int]],
        rows: Sequence[Row],
        sampling: _Sampling,
        end: Callable[[Row, list[int], list[float] | None], None],
        report: Callable[[int], None],
    ) -> None:
        """Decode the rows together; `end` gets each row's ids when it leaves the batch, `report` how many have
        ended."""
        steps = sampling.max_tokens
        if self._positions is not None:
            steps = min(steps, self._positions - min(len(prompts[index]) for index, _ in rows))
        cache = DynamicCache(config=self._model.config)
        logits, mask = self._prefill([prompts[index] for index, _ in rows], cache)
        padded = not bool(mask.all())
        lengths = mask.sum(-1)
        streams = UniformStreams(sampling.seed, [(sampling.first + index, sample) for index, sample in rows])
        device = logits.device
        stops = torch.tensor(self._stops, device=device)
        written = torch.full((len(rows), steps), -1, device=device)
        likely = torch.zeros(len(rows), steps if sampling.logprobs else 0, device=device)
        in_batch = torch.arange(len(rows), device=device)
        open_ = torch.ones(len(rows), dtype=torch.bool, device=device)

        def leave(left: torch.Tensor) -> None:
            gone = in_batch[left]
            for number, ids, logs in zip(gone.tolist(), written[gone].tolist(), likely[gone].tolist(), strict=True):
                ids = [token for token in ids if token >= 0]
                end(rows[number], ids, logs[: len(ids)] if sampling.logprobs else None)

        for step in range(steps):
            if sampling.temperature == 0:
                tokens = logits.argmax(-1)
                logs = _likelihood(logits, tokens) if sampling.logprobs else None
            else:
                tokens, logs = draw(logits, streams.next().to(device), sampling.temperature, sampling.top_p)
            written[in_batch, step] = torch.where(open_, tokens, -1)
            if sampling.logprobs:
                likely[in_batch, step] = logs
            open_ &= ~torch.isin(tokens, stops)
            if self._positions is not None:
                open_ &= lengths + step + 1 < self._positions
            left = int(open_.sum())
            if left == 0 or step == steps - 1:
                break
            if step % _REPORT_STEPS == _REPORT_STEPS - 1:
                report(len(rows) - left)
            if left <= _KEPT_SHARE * len(open_):
                leave(~open_)
                kept = open_.nonzero().squeeze(-1)
                cache.batch_select_indices(kept)
                streams.keep(kept.tolist())
                tokens, mask, lengths, in_batch, open_ = (x[kept] for x in (tokens, mask, lengths, in_batch, open_))
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=-1)
            positions = (lengths + step).unsqueeze(-1)
            logits = self._forward(tokens.unsqueeze(-1), mask if padded else None, positions, cache)
        leave(torch.ones_like(open_))

    def _prefill(self, prompts: list[Sequence[int]], cache: DynamicCache) -> tuple[torch.Tensor, torch.Tensor]:
        """Fill the cache with a row for each prompt, equal ones computed once.

        Returns:
            The next token's logits, (rows, vocabulary), and the mask of the left-padded prompts, (rows,
            length).
        """
        unique = {prompt: row for row, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
        ids, mask = self._padded(list(unique))
        padded = not bool(mask.all())
        logits = self._forward(ids, mask if padded else None, (mask.cumsum(-1) - 1).clamp(min=0), cache)
        copies = torch.tensor([unique[tuple(prompt)] for prompt in prompts], device=ids.device)
        cache.batch_select_indices(copies)
        return logits[copies], mask[copies]

    def _padded(self, sequences: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids padded on the left, and their mask, both (rows, length), where the model is."""
        longest = max(map(len, sequences))
        ids = torch.full((len(sequences), longest), self.tokenizer.pad_token_id or 0)
        mask = torch.zeros(len(sequences), longest, dtype=torch.int64)
        for row, sequence in enumerate(sequences):
            ids[row, longest - len(sequence) :] = torch.tensor(sequence)
            mask[row, longest - len(sequence) :] = 1
        return ids.to(self._model.device), mask.to(self._model.device)

    def _forward(
        self, ids: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor, cache: DynamicCache
    ) -> torch.Tensor:
        """Logits of the last position, shape (rows, vocabulary)."""
        output = self._model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1]

    def _completion(self, ids: list[int], logs: list[float] | None) -> Completion:
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        truncated = not ids or ids[-1] not in self._stops
        return Completion(text, len(ids), truncated, tuple(ids), None if logs is None else tuple(logs))


def _likelihood(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of tokens, shape (rows,), from logits of shape (rows, vocabulary)."""
    logits = logits.float()
    return logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)
