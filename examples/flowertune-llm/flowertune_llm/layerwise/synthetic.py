"""Made models of real shapes, for trying aggregation at full size without a disk.

Each client has its own weights: they are read from a block of random numbers, at another place for
each tensor and client. Making a slice costs one copy of its bytes.
"""

from functools import lru_cache
from logging import INFO
from pathlib import Path
from typing import Any

import numpy as np
from flwr.common import log

from flowertune_llm.layerwise.settings import LayerwiseSettings
from flowertune_llm.layerwise.shards import Shard, Slice, Span, Tensor, Writer

KEYS = ("num_hidden_layers", "hidden_size", "intermediate_size")
KEYS += ("num_attention_heads", "num_key_value_heads", "vocab_size")
# Source of the largest: config.json of meta-llama/Llama-3.1-70B. The others are smaller ones.
SHAPES = {
    "synthetic-llama-3.1-70b": dict(zip(KEYS, (80, 8192, 28672, 64, 8, 128256), strict=True)),
    "synthetic-llama-70b-4-layers": dict(zip(KEYS, (4, 8192, 28672, 64, 8, 1024), strict=True)),
    "synthetic-5gb": dict(zip(KEYS, (39, 2048, 8192, 32, 8, 32000), strict=True)),
    "synthetic-2gb": dict(zip(KEYS, (14, 2048, 8192, 32, 8, 32000), strict=True)),
    "synthetic-100mb": dict(zip(KEYS, (4, 512, 2048, 8, 8, 32000), strict=True)),
}
GPT2_LARGE = "synthetic-gpt2-large"
NAMES = (*SHAPES, GPT2_LARGE)
BLOCK = 2 * 16_777_259  # bytes; twice a prime, so that repeats do not fall on a chunk's border


def tensors(name: str) -> dict[str, Tensor]:
    return gpt2_large() if name == GPT2_LARGE else llama(SHAPES[name])


def gpt2_large() -> dict[str, Tensor]:
    """Return the 437 tensors of GPT-2 large with its head, in float32: 3.35 GB.

    Source of the sizes: config.json of openai-community/gpt2-large
    """
    width, vocabulary, positions, layers = 1280, 50257, 1024, 36
    layer = {
        "ln_1": (width,),
        "attn.c_attn": (width, 3 * width),
        "attn.c_proj": (width, width),
        "ln_2": (width,),
        "mlp.c_fc": (width, 4 * width),
        "mlp.c_proj": (4 * width, width),
    }
    shapes = {"transformer.wte.weight": (vocabulary, width)}
    shapes["transformer.wpe.weight"] = (positions, width)
    for number in range(layers):
        for name, size in layer.items():
            shapes[f"transformer.h.{number}.{name}.weight"] = size
            shapes[f"transformer.h.{number}.{name}.bias"] = size[-1:]
    shapes |= {"transformer.ln_f.weight": (width,), "transformer.ln_f.bias": (width,)}
    shapes["lm_head.weight"] = (vocabulary, width)
    return {name: Tensor(name, "F32", size) for name, size in shapes.items()}


def llama(shape: dict[str, int]) -> dict[str, Tensor]:
    """Return the tensors of a Llama of this shape, in bfloat16, in the usual order."""
    hidden, wide = shape["hidden_size"], shape["intermediate_size"]
    narrow = hidden // shape["num_attention_heads"] * shape["num_key_value_heads"]
    layer = {
        "input_layernorm": (hidden,),
        "mlp.down_proj": (hidden, wide),
        "mlp.gate_proj": (wide, hidden),
        "mlp.up_proj": (wide, hidden),
        "post_attention_layernorm": (hidden,),
        "self_attn.k_proj": (narrow, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.v_proj": (narrow, hidden),
    }
    shapes = {"model.embed_tokens.weight": (shape["vocab_size"], hidden)}
    for number in range(shape["num_hidden_layers"]):
        shapes |= {f"model.layers.{number}.{name}.weight": size for name, size in layer.items()}
    shapes |= {"model.norm.weight": (hidden,), "lm_head.weight": (shape["vocab_size"], hidden)}
    return {name: Tensor(name, "BF16", size) for name, size in shapes.items()}


class SyntheticModel:
    """A client's made model, in the place of a checkpoint."""

    fingerprint = "made"

    def __init__(self, name: str, partition: int) -> None:
        self.tensors = tensors(name)
        self.partition = partition
        self.numbers = {tensor: number for number, tensor in enumerate(self.tensors)}
        self.block = random_block()

    def read(self, span: Span) -> bytes:
        begin = 2 * (self.numbers[span.name] * 7919 + self.partition * 6_700_417)
        begin, left = (begin + span.start) % BLOCK, span.stop - span.start
        pieces = []
        while left:
            pieces.append(self.block[begin : begin + left])
            begin, left = 0, left - len(pieces[-1])
        return b"".join(pieces)


@lru_cache(maxsize=1)
def random_block() -> memoryview:
    """Return the bytes of bfloat16 numbers from a normal distribution.

    Two neighbours make a float32, too: the value of the second one, with more digits.
    """
    generator, bits = np.random.default_rng(42), np.empty(BLOCK // 2, np.uint16)
    for some in np.array_split(bits, 64):  # all at once would take several times the memory
        values = generator.standard_normal(len(some), dtype=np.float32) * 0.02
        some[:] = values.view(np.uint32) >> 16
    return bits.view(np.uint8).data


@lru_cache(maxsize=4)
def open_model(name: str, partition: int) -> SyntheticModel:
    return SyntheticModel(name, partition)


def expected(name: str, shares: dict[int, float], span: Span) -> Any:
    """Return the mean of the clients' models for a span of bytes, in float32.

    Args:
        shares: each partition's share of the mean; they add up to 1.
    """
    dtype = open_model(name, 0).tensors[span.name].dtype
    return sum(
        to_float32(open_model(name, partition).read(span), dtype) * np.float32(share)
        for partition, share in shares.items()
    )


def to_float32(data: Any, dtype: str) -> np.ndarray:
    if dtype == "F32":
        return np.frombuffer(data, np.float32)
    return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)


class Discard:
    """A sink in the place of `shards.Writer` that checks slices of made models, and drops them.

    Raises:
        RuntimeError: a slice is not the mean of the clients' slices.
    """

    whole = 0

    def __init__(self, name: str, shares: dict[int, float]) -> None:
        self.name, self.shares = name, shares
        self.place: tuple[Slice | None, int] = (None, 0)

    def begin(self, shard: Shard) -> None:
        pass

    def write(self, piece: Slice, data: memoryview) -> None:
        offset = self.place[1] if self.place[0] is piece else 0
        self.place = (piece, offset + len(data))
        if offset == 0 and self.name in NAMES:  # one block of each slice only: checking is slow
            self.check(piece.spans[0], data)

    def check(self, span: Span, data: memoryview) -> None:
        stop = min(span.stop, span.start + len(data))
        dtype = open_model(self.name, 0).tensors[span.name].dtype
        values = to_float32(data[: stop - span.start], dtype)
        wanted = expected(self.name, self.shares, Span(span.name, span.start, stop))
        # The absolute tolerance is for values that cancel: they leave the last bits of float32.
        if not np.allclose(values, wanted, rtol=2**-8, atol=1e-8):
            raise RuntimeError(f"{span.name}, from byte {span.start}: not the clients' mean")

    def end(self, shard: Shard) -> None:
        pass

    def abandon(self) -> None:
        pass

    def finish(self, beside: Any) -> None:
        log(INFO, "The model is discarded, as aggregation.output asks")


def make_sink(
    config: LayerwiseSettings,
    folder: Path,
    shards: list[Shard],
    identity: Any,
    shares: dict[int, float],
) -> Writer | Discard:
    """Return the sink of a round's slices, by `aggregation.output`.

    Args:
        config: the settings.
        folder, shards, identity: as for `Writer`.
        shares: each partition's share of the mean.
    """
    if config.aggregation_output == "discard":
        return Discard(config.model_name, shares)
    return Writer(folder, shards, identity)
