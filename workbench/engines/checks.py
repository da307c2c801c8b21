"""What a call to an engine refuses before any work, and what an answer must be to count."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from workbench.errors import InputError
from workbench.types import Prompt, Sampling

CUT = "cut off before it had the form asked for"
CUT_SHORT = CUT + ": raise max_tokens (it was {})"
PATIENCE = 1.0  # seconds for a pattern, of which some take forever on half an answer


def check_errors(errors: object) -> None:
    if errors not in ("raise", "return"):
        raise InputError(f'errors={errors!r} must be "raise" or "return"')


def check_prompts(prompts: Sequence[Prompt]) -> None:
    """Refuse prompts that are unusable as a whole.

    Raises:
        InputError: not a list, empty, an empty or malformed prompt, or texts mixed with chats.
    """
    if isinstance(prompts, str) or not isinstance(prompts, Sequence):
        raise InputError(f"prompts={prompts!r:.80} must be a list of prompts: [prompt]")
    if not prompts:
        raise InputError("prompts is empty: give at least one prompt")
    for index, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            if not prompt:
                raise InputError(f"prompt {index} is empty: a model needs some text to continue")
        else:
            _check_chat(index, prompt)
    if len({isinstance(prompt, str) for prompt in prompts}) == 2:
        raise InputError(
            "prompts mixes texts and chats: make two calls, or write the texts as "
            '[{"role": "user", "content": text}]'
        )


def _check_chat(index: int, prompt: object) -> None:
    need = 'a non-empty text or a list of {"role": ..., "content": ...}'
    if not isinstance(prompt, Sequence) or not prompt:
        raise InputError(f"prompt {index} is {prompt!r:.80}: must be {need}")
    for message in prompt:
        if not isinstance(message, dict) or not all(
            isinstance(message.get(name), str) for name in ("role", "content")
        ):
            raise InputError(f"prompt {index} holds {message!r:.80}: must be {need}")


def check_labels(labels: Sequence[str]) -> None:
    if isinstance(labels, str) or not isinstance(labels, Sequence) or not labels:
        raise InputError(f"labels={labels!r:.80} must be a non-empty list of texts")
    for label in labels:
        if not isinstance(label, str) or not label:
            raise InputError(f"label {label!r} must be a non-empty text")
    twice = [label for label, count in Counter(labels).items() if count > 1]
    if twice:
        raise InputError(f"label {twice[0]!r} is given twice: each label must differ")


def misshapen(sampling: Sampling, text: str, finish: str) -> str | None:
    """Why an answer is not the structured output that was asked for, None where it is.

    Only what an engine cannot be trusted with: an answer that ended by itself has its form.
    """
    if sampling.choices is not None and text in sampling.choices:
        longer = any(one != text and one.startswith(text) for one in sampling.choices)
        return CUT_SHORT.format(sampling.max_tokens) if longer and finish == "length" else None
    if finish == "length" or (sampling.stop and sampling.json_schema is not None):
        whole = sampling.choices is None and _whole(sampling, text)
        if whole:
            return None
        if finish != "length":
            return f"{CUT}: a stop text ended it; leave `stop` out"
        return CUT_SHORT.format(sampling.max_tokens)
    if sampling.choices is not None:
        return f"{text!r:.200} is none of the choices"
    return None


def _whole(sampling: Sampling, text: str) -> bool:
    """Whether an answer that was cut has its form all the same."""
    if sampling.regex is not None:
        regex: Any = import_module("regex")  # of transformers; the standard one has no timeout
        try:
            return regex.fullmatch(sampling.regex, text, timeout=PATIENCE) is not None
        except (regex.error, TimeoutError):
            return False
    if sampling.json_schema is not None:
        try:
            number = isinstance(json.loads(text), int | float)  # more digits might have followed
        except (ValueError, RecursionError):
            return False
        return not number
    return True
