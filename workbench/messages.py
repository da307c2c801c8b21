"""The content of a message: a text, or a list of parts, texts and images, as in OpenAI's protocol.

A part is {"type": "text", "text": …} or {"type": "image_url", "image_url": {"url": …}}; an image is
at an address or within a data URL. Files and PIL's images become data URLs.
"""

from __future__ import annotations

import base64
import io
import mimetypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.errors import InputError

IMAGE = "[image]"  # where an image is shown as text
NEED = (
    'a text, or a list of {"type": "text", "text": …} and {"type": "image_url", "image_url": '
    '{"url": …}} with an https or data URL, a pathlib.Path or an image of PIL'
)


def plain_prompt(prompt: Any, where: str) -> Any:
    """A prompt as JSON values; a text, and a chat of texts, are returned as they are.

    Raises:
        InputError: as `plain_content`.
    """
    chat = prompt if isinstance(prompt, list | tuple) else ()
    contents = [one.get("content", "") if isinstance(one, Mapping) else "" for one in chat]
    if all(isinstance(content, str) for content in contents):
        return prompt
    return [{**one, "content": plain_content(one.get("content", ""), where)} for one in chat]


def plain_content(content: Any, where: str) -> str | list[dict[str, Any]]:
    """A message's content as JSON values; `where` begins the message of an error.

    Raises:
        InputError: an unknown part, or a file that is not a readable image.
    """
    if isinstance(content, str):
        return content
    given = content.tolist() if getattr(content, "ndim", 0) == 1 else content  # a table's cell
    if not isinstance(given, list | tuple) or not given:
        raise InputError(f"{where}: content is {given!r:.80}: must be {NEED}")
    return [_plain_part(part, where) for part in given]


def _plain_part(part: Any, where: str) -> dict[str, Any]:
    # A table's column has all keys of its parts, None where a part lacks one.
    items = part.items() if isinstance(part, Mapping) else ()
    found = {key: value for key, value in items if value is not None}
    kind = found.get("type")
    if kind == "text" and isinstance(found.get("text"), str):
        return found
    if kind != "image_url":
        raise InputError(f"{where}: unknown part {part!r:.80}: content must be {NEED}")
    image = found.get("image_url")
    about = dict(image) if isinstance(image, Mapping) else {"url": image}
    return {**found, "image_url": about | {"url": _url(about.get("url"), where)}}


def _url(image: Any, where: str) -> str:
    """An image's URL; a data URL of a file or an image in memory."""
    if isinstance(image, str) and image.startswith(("https://", "http://", "data:image/")):
        return image
    kind, data = "image/png", io.BytesIO()
    if isinstance(image, Path):
        kind = mimetypes.guess_type(image.name)[0] or ""
        try:
            data.write(image.expanduser().read_bytes())
        except OSError as error:
            raise InputError(f"{where}: image {str(image)!r}: {error.strerror}") from error
    elif type(image).__module__.startswith("PIL."):
        image.save(data, "PNG")
    else:
        kind = ""
    if not kind.startswith("image/"):
        raise InputError(f"{where}: image {image!r:.80}: content must be {NEED}")
    return f"data:{kind};base64,{base64.b64encode(data.getvalue()).decode()}"


def text_of(content: Any) -> str:
    """A content's texts, a part per line; an image is `IMAGE`."""
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] if part["type"] == "text" else IMAGE for part in content)


def images_in(prompt: Any) -> list[Mapping[str, Any]]:
    """The parts of a chat that are images; none of a text."""
    chat = [] if isinstance(prompt, str) else [one for one in prompt if isinstance(one, Mapping)]
    lists = [one["content"] for one in chat if isinstance(one["content"], list | tuple)]
    return [part for parts in lists for part in parts if part.get("type") != "text"]


def refuse_images(prompt: Any, what: str) -> None:
    """Refuse, by an `InputError` with the remedy, a chat with images where they are not read."""
    if images_in(prompt):
        raise InputError(
            f"a message has an image, but {what}: open a model that takes images with "
            'engine="vllm", or serve it and use engine="remote"'
        )


def shown(prompt: str | Sequence[Mapping[str, Any]]) -> Any:
    """A prompt for people, as JSON values: the data of an image is `IMAGE`."""
    if not images_in(prompt):
        return prompt
    return [{**m, "content": _shown(m["content"])} for m in prompt if isinstance(m, Mapping)]


def _shown(content: Any) -> Any:
    if isinstance(content, str):
        return content
    addresses = ("https://", "http://")
    return [
        part
        if part.get("type") == "text" or str(part["image_url"]["url"]).startswith(addresses)
        else {**part, "image_url": {"url": IMAGE}}
        for part in content
    ]
