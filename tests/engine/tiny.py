"""A random model of about 1 MiB that llama.cpp loads: llama architecture, byte-level vocabulary."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

CONTEXT_TOKENS = 2048
WIDTH = 64
HEADS = 4
LAYERS = 2
FEED_FORWARD = 128
_END = 2

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.content == 'refuse' %}{{ raise_exception('refused') }}{% endif %}"
    "<|{{ m.role }}|>{{ m.content | trim }}<|done|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def write_tiny(
    path: Path, *, template: str | None = CHAT_TEMPLATE, seed: int = 1, context: int = CONTEXT_TOKENS
) -> Path:
    """Write the model. ``template`` None: a base model."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("tiny")
    writer.add_context_length(context)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    vocabulary = _add_vocabulary(writer)
    if template is not None:
        writer.add_chat_template(template)
    _add_tensors(writer, vocabulary, np.random.default_rng(1))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_vocabulary(writer: gguf.GGUFWriter) -> int:
    special = ["<unk>", "<s>", "</s>"]
    roles = ["<|user|>", "<|assistant|>", "<|system|>", "<|done|>"]
    tokens = [*special, *(f"<0x{i:02X}>" for i in range(256)), "\u2581", *(chr(i) for i in range(33, 127)), *roles]
    kinds = [
        gguf.TokenType.UNKNOWN,
        gguf.TokenType.CONTROL,
        gguf.TokenType.CONTROL,
        *[gguf.TokenType.BYTE] * 256,
        *[gguf.TokenType.NORMAL] * 95,
        *[gguf.TokenType.CONTROL] * 4,
    ]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([t.encode() for t in tokens])
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    return len(tokens)


def _add_tensors(writer: gguf.GGUFWriter, vocabulary: int, random: np.random.Generator) -> None:
    def matrix(name: str, rows: int, columns: int, scale: float = 0.3) -> None:
        writer.add_tensor(name, (random.standard_normal((rows, columns)) * scale).astype(np.float32))

    def ones(name: str) -> None:
        writer.add_tensor(name, np.ones(WIDTH, dtype=np.float32))

    matrix("token_embd.weight", vocabulary, WIDTH, 1.0)
    output = (random.standard_normal((vocabulary, WIDTH)) * 0.3).astype(np.float32)
    output[_END] = 0  # The end of text never wins a greedy draw: answers are as long as a test wants them.
    writer.add_tensor("output.weight", output)
    ones("output_norm.weight")
    for layer in range(LAYERS):
        ones(f"blk.{layer}.attn_norm.weight")
        ones(f"blk.{layer}.ffn_norm.weight")
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            matrix(f"blk.{layer}.{part}.weight", WIDTH, WIDTH)
        matrix(f"blk.{layer}.ffn_gate.weight", FEED_FORWARD, WIDTH)
        matrix(f"blk.{layer}.ffn_up.weight", FEED_FORWARD, WIDTH)
        matrix(f"blk.{layer}.ffn_down.weight", WIDTH, FEED_FORWARD)
