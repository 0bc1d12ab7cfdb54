"""Text, or tokens by id, in all the forms in which OpenAI's clients send them. Pure; raises only BadInput."""

from __future__ import annotations

from meshd.api.fields import Fields, check_text
from meshd.core import limits
from meshd.core.errors import BadInput
from meshd.core.generation import ID_BYTES, Prompt

MAX_TOKEN_ID = 2**31 - 1


def prompts_of(fields: Fields, name: str, max_count: int) -> tuple[Prompt, ...]:
    """A string, a list of strings, a list of token ids, or a list of such lists: 1 to ``max_count`` prompts."""
    value, param = fields.raw(name), fields.param(name)
    items = value if isinstance(value, list) and not _is_ids(value) else [value]
    if not 1 <= len(items) <= max_count:
        raise BadInput(f"{param} must have 1 to {max_count} entries", param=param)
    if len({type(item) for item in items}) > 1:
        raise BadInput(f"{param} must be all strings, or all lists of token ids", param=param)
    prompts = tuple(_prompt(item, param) for item in items)
    if sum(prompt.size_bytes() for prompt in prompts) > limits.MAX_PROMPT_BYTES:
        raise BadInput(f"{param} is larger than {limits.MAX_PROMPT_BYTES} bytes", param=param)
    return prompts


def _is_ids(value: list[object]) -> bool:
    return bool(value) and isinstance(value[0], int | float) and not isinstance(value[0], bool)


def _prompt(value: object, param: str) -> Prompt:
    if isinstance(value, str):
        text = check_text(value, param)
        if len(text.encode()) > limits.MAX_PROMPT_BYTES:
            raise BadInput(f"{param} is larger than {limits.MAX_PROMPT_BYTES} bytes", param=param)
        return Prompt(text=text)
    if isinstance(value, list):
        return Prompt(tokens=token_ids(value, param))
    raise BadInput(f"{param} must be a string, a list of strings, or lists of token ids", param=param)


def token_ids(value: object, param: str) -> tuple[int, ...]:
    """A list of at least one token id."""
    if not isinstance(value, list) or not 1 <= len(value) <= limits.MAX_PROMPT_BYTES // ID_BYTES:
        raise BadInput(f"{param} must be a list of 1 to {limits.MAX_PROMPT_BYTES // ID_BYTES} token ids", param=param)
    for item in value:
        if type(item) is not int or not 0 <= item <= MAX_TOKEN_ID:
            raise BadInput(f"{param}: a token id is a whole number between 0 and {MAX_TOKEN_ID}", param=param)
    return tuple(value)
