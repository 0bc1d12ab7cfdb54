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
_BYTES = 3
"""Where the tokens of single bytes begin."""

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.content == 'refuse' %}{{ raise_exception('refused') }}{% endif %}"
    "<|{{ m.role }}|>{{ m.content | trim }}<|done|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def write_tiny(
    path: Path,
    *,
    template: str | None = CHAT_TEMPLATE,
    seed: int = 1,
    context: int = CONTEXT_TOKENS,
    control: tuple[str, ...] = (),
    words: tuple[str, ...] = (),
    ascii_only: bool = False,
) -> Path:
    """Write the model. ``template`` None: a base model. ``control``: further control tokens; ``words``: further tokens
    that are text. ``ascii_only``: what it says greedily is valid UTF-8."""
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
    vocabulary = _add_vocabulary(writer, control, words)
    if template is not None:
        writer.add_chat_template(template)
    _add_tensors(writer, vocabulary, np.random.default_rng(1), ascii_only)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_vocabulary(writer: gguf.GGUFWriter, control: tuple[str, ...], words: tuple[str, ...]) -> int:
    special = ["<unk>", "<s>", "</s>"]
    roles = ["<|user|>", "<|assistant|>", "<|system|>", "<|done|>", *control]
    letters = [chr(i) for i in range(33, 127)]
    tokens = [*special, *(f"<0x{i:02X}>" for i in range(256)), "\u2581", *letters, *roles, *words]
    kinds = [
        gguf.TokenType.UNKNOWN,
        gguf.TokenType.CONTROL,
        gguf.TokenType.CONTROL,
        *[gguf.TokenType.BYTE] * 256,
        *[gguf.TokenType.NORMAL] * 95,
        *[gguf.TokenType.CONTROL] * len(roles),
        *[gguf.TokenType.USER_DEFINED] * len(words),
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


def _add_tensors(writer: gguf.GGUFWriter, vocabulary: int, random: np.random.Generator, ascii_only: bool) -> None:
    def matrix(name: str, rows: int, columns: int, scale: float = 0.3) -> None:
        writer.add_tensor(name, (random.standard_normal((rows, columns)) * scale).astype(np.float32))

    def ones(name: str) -> None:
        writer.add_tensor(name, np.ones(WIDTH, dtype=np.float32))

    matrix("token_embd.weight", vocabulary, WIDTH, 1.0)
    output = (random.standard_normal((vocabulary, WIDTH)) * 0.3).astype(np.float32)
    output[_END] = 0  # The end of text never wins a greedy draw: answers are as long as a test wants them.
    if ascii_only:
        output[_BYTES + 0x80 : _BYTES + 0x100] = 0
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


BERT_CONTEXT_TOKENS = 64


def write_tiny_bert(path: Path, *, pooling: gguf.PoolingType | None = gguf.PoolingType.MEAN) -> Path:
    """Write a model that only turns texts into vectors: every token looks at all others. Knows letters and blanks."""
    writer = gguf.GGUFWriter(str(path), "bert")
    writer.add_name("tiny-bert")
    writer.add_context_length(BERT_CONTEXT_TOKENS)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_eps(1e-5)
    writer.add_causal_attention(False)
    if pooling is not None:
        writer.add_pooling_type(pooling)
    letters = [chr(i) for i in range(ord("a"), ord("z") + 1)]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens = [*special, *("\u2581" + letter for letter in letters), *letters]
    kinds = [gguf.TokenType.CONTROL] * len(special) + [gguf.TokenType.NORMAL] * (2 * len(letters))
    writer.add_tokenizer_model("bert")
    writer.add_token_list([t.encode() for t in tokens])
    writer.add_token_types(kinds)
    writer.add_token_type_count(1)
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_sep_token_id(3)
    writer.add_mask_token_id(4)
    _add_bert_tensors(writer, len(tokens), np.random.default_rng(2))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_bert_tensors(writer: gguf.GGUFWriter, vocabulary: int, random: np.random.Generator) -> None:
    def add(name: str, *shape: int, scale: float = 0.3) -> None:
        writer.add_tensor(name, (random.standard_normal(shape) * scale).astype(np.float32))

    def norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, dtype=np.float32))
        writer.add_tensor(f"{name}.bias", np.zeros(WIDTH, dtype=np.float32))

    add("token_embd.weight", vocabulary, WIDTH, scale=1.0)
    add("token_types.weight", 1, WIDTH)
    add("position_embd.weight", BERT_CONTEXT_TOKENS, WIDTH)
    norm("token_embd_norm")
    for layer in range(LAYERS):
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{layer}.{part}.weight", WIDTH, WIDTH)
        add(f"blk.{layer}.ffn_up.weight", FEED_FORWARD, WIDTH)
        add(f"blk.{layer}.ffn_down.weight", WIDTH, FEED_FORWARD)
        norm(f"blk.{layer}.attn_output_norm")
        norm(f"blk.{layer}.layer_output_norm")
