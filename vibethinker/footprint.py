"""How many bytes of a GPU's memory a step needs, from a model's shape and the settings, without torch.

Training, of a Llama-like decoder with flash attention, is the sum of

- weights: float32 where they are trained in full, beside the bfloat16 copies that autocast keeps from the forward pass
  to the backward one; bfloat16 where they are frozen, or NF4 (half a byte and a scale a block of 64, embeddings left
  as they are); adapters are float32;
- gradients: float32, of what is trained; optimizer: two moments, float32 or 8 bits;
- activations: what autograd keeps, for each token and block. With hidden width h, query width q, key and value width
  kv, MLP width f, in bytes:
      trained in full under autocast  26h + 4q + 4kv + 8f   two norms keep their float32 input and output (16h), five
                                                            projections a bfloat16 copy of their input (10h), attention
                                                            q, k, v and its output, the MLP gate, silu, up, product
      adapters on bfloat16 weights    18h + 6q + 4kv + 8f   two norms keep a float32 copy of their input (8h), each
                                                            adapter its input (10h, and q before the output)
      float32 without autocast        24h + 8q + 8kv + 16f  two norms keep input, normalised and scaled output
  Norms on q and k, which Qwen3 has, add 6(q + kv), 4(q + kv) and 8(q + kv). These agree within 6 % with the bytes that
  autograd saves (tests/test_footprint.py). With gradient checkpointing a block keeps its input only (4h, or 2h where
  the residual stream is bfloat16), and one block at a time has everything. In the backward pass a block's gradients
  need as much again as its activations, once;
- logits: those of one chunk of the loss, in bfloat16 with their float32 gradient;
- CUDA's context.

The largest micro-batch has `micro_tokens`, or one row of the longest sequence where that is more. An engine that
samples beside the trainer takes its share of the GPU for good, or none while it sleeps. Left out: Unsloth's kernels,
which keep less, and what is lost between the allocator's blocks, for which HEADROOM is left free.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

GIB = 1 << 30
HEADROOM = 0.92  # share of a GPU that can be planned with; allocators waste the rest [choice]
CONTEXT = GIB  # CUDA's own, with its libraries' workspaces; 0.5 to 1 GiB on an H100 [choice]
CHUNK_ROWS = 4096  # whose logits the loss computes at once: 1.2 GB over 152k in bfloat16
VLLM_TOKENS = 16384  # that vLLM takes in a pass on a GPU of 70 GiB or more; half of it on others
LOGIT_BYTES = 6  # bfloat16 logits and a float32 gradient
NF4_BYTES = 0.5 + 4 / 64  # bitsandbytes, blocks of 64 with a float32 scale each
MOMENT_BYTES = {"adamw": 8.0, "adamw_8bit": 2.0 + 2 * 4 / 256}  # 8 bits in blocks of 256 (bitsandbytes)
# What autograd keeps for a token and block, by regime: multiples of h, q, kv and f, and of q + kv for norms on both.
KEPT = {"full": (26, 4, 4, 8, 6), "lora": (18, 6, 4, 8, 4), "float32": (24, 8, 8, 16, 8)}
RESIDUAL = {"full": 4, "lora": 2, "float32": 4}  # bytes of h that a checkpointed block keeps


@dataclass(frozen=True)
class Shape:
    """A Llama-like decoder's widths, from the words of its config.json."""

    hidden: int
    query: int
    key_value: int
    mlp: int
    layers: int
    vocabulary: int
    tied: bool
    qk_norm: bool

    @classmethod
    def of(cls, words: Mapping[str, Any]) -> Shape:
        """The shape that a config.json, or a profile's `architecture`, describes."""
        hidden, heads = words["hidden_size"], words["num_attention_heads"]
        head = words.get("head_dim") or hidden // heads
        return cls(
            hidden=hidden,
            query=heads * head,
            key_value=(words.get("num_key_value_heads") or heads) * head,
            mlp=words["intermediate_size"],
            layers=words["num_hidden_layers"],
            vocabulary=words["vocab_size"],
            tied=bool(words.get("tie_word_embeddings")),
            qk_norm=words.get("model_type") == "qwen3",
        )

    @property
    def block(self) -> int:
        """Weights of one block."""
        attention = 2 * self.hidden * (self.query + self.key_value)
        return attention + 3 * self.hidden * self.mlp + 2 * self.hidden

    @property
    def embeddings(self) -> int:
        """Weights of the embeddings and the head."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """All weights."""
        return self.layers * self.block + self.embeddings + self.hidden

    def adapters(self, rank: int) -> int:
        """Weights of adapters on all seven projections of every block."""
        wide = 4 * self.hidden + 2 * self.query + 2 * self.key_value + 3 * (self.hidden + self.mlp)
        return self.layers * rank * wide

    @property
    def cache(self) -> int:
        """Bytes of keys and values that a token has in an engine's cache, in bfloat16."""
        return 4 * self.layers * self.key_value


@dataclass(frozen=True)
class Training:
    """A training step as its memory sees it.

    Attributes:
        tokens: of the largest micro-batch, padding included; one row of the longest sequence at least.
        rank: of adapters, with `method` lora.
    """

    shape: Shape
    tokens: int
    method: str = "full"
    rank: int = 16
    precision: str = "bfloat16"
    quantization: str = "none"
    optimizer: str = "adamw"
    processes: int = 1
    sharding: str = "ddp"

    @property
    def regime(self) -> str:
        """The row of the tables above that it belongs to."""
        return "float32" if self.precision == "float32" else self.method

    @property
    def trainable(self) -> int:
        """Weights that are trained."""
        return self.shape.adapters(self.rank) if self.method == "lora" else self.shape.parameters


def training_parts(training: Training, *, checkpointing: bool) -> dict[str, int]:
    """Bytes of each part at the peak, on each GPU: weights, compute_copies, gradients, optimizer, activations, logits
    and context. With `checkpointing` activations are computed again in the backward pass."""
    t, shape = training, training.shape
    rows = min(CHUNK_ROWS, t.tokens)
    parts = {
        **_states(t),
        "activations": _activations(t, checkpointing),
        "logits": rows * shape.vocabulary * (8 if t.precision == "float32" else LOGIT_BYTES),
        "context": CONTEXT,
    }
    return {name: int(value) for name, value in parts.items()}


def between_updates(training: Training) -> int:
    """Bytes that stay on the GPU while the trainer lets an engine sample: weights, moments and context."""
    states = _states(training)
    return int(states["weights"] + states["optimizer"] + CONTEXT)


def checkpointing(training: Training, available: int) -> bool:
    """What `execution.gradient_checkpointing: null` means: activations are computed again in the backward pass where
    the step would not fit otherwise, with HEADROOM.

    Args:
        available: bytes of the GPU, less what an engine beside the trainer keeps.
    """
    return sum(training_parts(training, checkpointing=False).values()) > HEADROOM * available


def decoding_parts(shape: Shape, sequences: int, length: int, precision: str) -> dict[str, int]:
    """Bytes that transformers decodes in, beside the weights: a cache of `length` tokens a sequence, and logits."""
    wide = width(precision)
    return {
        "cache": sequences * length * shape.cache * wide // 2,
        "logits": sequences * shape.vocabulary * (4 + wide),
    }


def vllm_floor(shape: Shape, length: int, precision: str) -> int:
    """The least that vLLM starts with: weights, the cache of one sequence, and a gibibyte to compute in."""
    return width(precision) * shape.parameters + length * shape.cache + GIB


def vllm_cache(shape: Shape, share: int, sequences: int, precision: str) -> int:
    """Bytes of keys and values that a share of a GPU has room for in vLLM, beside its weights, the widest activations
    of a pass, the logits of all sequences with float32 copies before and after scaling, and a context with CUDA graphs.
    Qwen2.5-0.5B with 256 sequences has 21.7 GiB of 23.75 by vLLM's own measurement (docs/results.md), 20.7 by this."""
    wide = width(precision)
    computing = VLLM_TOKENS * (3 * shape.mlp + 2 * shape.hidden) * wide + sequences * shape.vocabulary * (8 + wide)
    return share - wide * shape.parameters - computing - CONTEXT


def width(precision: str) -> int:
    """Bytes of a number."""
    return 4 if precision == "float32" else 2


def _states(t: Training) -> dict[str, float]:
    shape, trained, wide = t.shape, t.trainable, width(t.precision)
    copies = 0.0
    if t.method == "full":
        weights = 4.0 * shape.parameters
        copies = 0.0 if t.precision == "float32" else 2.0 * shape.parameters
    else:
        packed = NF4_BYTES if t.quantization == "nf4" else wide
        weights = packed * shape.layers * shape.block + wide * (shape.embeddings + shape.hidden) + 4.0 * trained
    gradients, moments = 4.0 * trained, MOMENT_BYTES[t.optimizer] * trained
    if t.processes > 1 and t.sharding == "fsdp":
        # Two blocks at a time are whole: the one that computes and the one that is being fetched.
        copies = float(wide * (2 * shape.block + shape.embeddings))
        weights, gradients, moments = (value / t.processes for value in (weights, gradients, moments))
    elif t.processes > 1:
        gradients *= 2  # DDP's buckets
    return {"weights": weights, "compute_copies": copies, "gradients": gradients, "optimizer": moments}


def block_activations(shape: Shape, regime: str) -> int:
    """Bytes that autograd keeps for one token in one block; `regime` is full, lora or float32."""
    h, q, kv, f, norms = KEPT[regime]
    kept = h * shape.hidden + q * shape.query + kv * shape.key_value + f * shape.mlp
    return kept + norms * (shape.query + shape.key_value) * shape.qk_norm


def _activations(t: Training, again: bool) -> int:
    block = block_activations(t.shape, t.regime)
    kept = RESIDUAL[t.regime] * t.shape.hidden if again else block
    outside = 3 * 4 * t.shape.hidden  # embeddings, the last norm's input and output
    return t.tokens * (t.shape.layers * kept + (2 if again else 1) * block + outside)
