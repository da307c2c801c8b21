"""A chat API in front of a real server: its chats and its list of models, and nothing else."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

from stranger import Asked, Said, Stranger

__all__ = ["chat_api"]

OURS = ("return_token_ids", "return_tokens_as_token_ids", "structured_outputs", "top_k", "min_p")


def chat_api(url: str, key: str, *, logprobs: bool = True, name: str = "some-model") -> Stranger:
    """A server to be started; with no log-probabilities it refuses to be asked for any.

    Args:
        url: of the real server, ending in /v1.
        key: for it.
        name: of the only model here.
    """

    def say(asked: Asked) -> Said:
        if asked.path == "/v1/models":
            return Said({"object": "list", "data": [{"id": name, "owned_by": "somebody"}]})
        if asked.path != "/v1/chat/completions":
            return Said({"error": {"message": f"Invalid URL ({asked.method} {asked.path})"}}, 404)
        if "logprobs" in asked.body and not logprobs:
            return Said({"error": {"message": "'logprobs' is not supported with this model"}}, 400)
        if odd := [one for one in OURS if one in asked.body]:
            return Said({"error": {"message": f"Unrecognized request argument: {odd[0]}"}}, 400)
        body = json.dumps({**asked.body, "model": "workbench-tiny"}).encode()
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        request = urllib.request.Request(f"{url}/chat/completions", body, headers)
        try:
            with urllib.request.urlopen(request) as reply:
                return Said(json.load(reply) | {"model": name})
        except urllib.error.HTTPError as error:
            return Said(error.read(), error.code)

    return Stranger(say)
