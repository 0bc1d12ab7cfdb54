"""The bodies of /v1/embeddings and of the two routes about tokens. Pure; every function raises only BadInput."""

from __future__ import annotations

from meshd.api import parse_options as options
from meshd.api.asked import EmbeddingRequest, TokenizationRequest
from meshd.api.fields import Fields
from meshd.api.parse_inputs import prompts_of, token_ids
from meshd.api.parse_messages import messages_of
from meshd.core import limits
from meshd.core.errors import BadInput
from meshd.core.generation import Prompt
from meshd.core.job import Embedding, Tokenization

MAX_DIMENSIONS = 65_536


def parse_embeddings(body: object) -> EmbeddingRequest:
    """The request for vectors in a decoded JSON ``body``."""
    fields = Fields(body)
    fields.ignore("user")
    model = fields.required_text("model", max_chars=200)
    inputs = prompts_of(fields, "input", limits.MAX_INPUTS)
    form = fields.text("encoding_format", max_chars=20)
    if form not in (None, "float", "base64"):
        raise BadInput("no such encoding_format", param="encoding_format", hint="one of: float, base64")
    dimensions = fields.integer("dimensions", 1, MAX_DIMENSIONS)
    constraints, _ = options.mesh_of(fields)
    fields.finish(options.HINT)
    return EmbeddingRequest(model, Embedding(inputs), constraints, form == "base64", dimensions)


def parse_tokenize(body: object) -> TokenizationRequest:
    """{"model", "text" or "messages", "special"?: bool, "pieces"?: bool}. Messages go through the model's template,
    which brings its own beginning of text."""
    fields = Fields(body)
    model = fields.required_text("model", max_chars=200)
    text = fields.text("text", max_chars=limits.MAX_PROMPT_BYTES)
    messages = fields.raw("messages")
    if (text is None) == (messages is None):
        raise BadInput("give either text or messages", param="text")
    prompt = Prompt(text=text) if text is not None else Prompt(messages=messages_of(messages))
    special = fields.boolean("special") or False
    pieces = fields.boolean("pieces") or False
    constraints, _ = options.mesh_of(fields)
    fields.finish()
    return TokenizationRequest(model, Tokenization(prompt, special), constraints, False, pieces)


def parse_detokenize(body: object) -> TokenizationRequest:
    """{"model", "tokens": [ids], "special"?: bool}."""
    fields = Fields(body)
    model = fields.required_text("model", max_chars=200)
    prompt = Prompt(tokens=token_ids(fields.raw("tokens"), "tokens"))
    special = fields.boolean("special") or False
    constraints, _ = options.mesh_of(fields)
    fields.finish()
    return TokenizationRequest(model, Tokenization(prompt, special), constraints, True)
