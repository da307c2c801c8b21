"""An engine for tests that need what no real one can be made to do."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Self

from workbench.types import (
    Completion,
    EngineInfo,
    Errors,
    LabelScores,
    Sampling,
    Usage,
)


class FakeEngine:
    """The interface of an engine; a test overrides what it uses.

    Args:
        info: fields of its `EngineInfo` that a test looks at.
    """

    def __init__(self, **info: Any) -> None:
        known: dict[str, Any] = {"engine": "fake", "model": "stand-in", "revision": "1"}
        known |= {"device": "none", "dtype": "float64", "context_length": 0, "versions": {}}
        self.info, self.usage = EngineInfo(**known | {"why": "a test"} | info), Usage()

    def label_logprobs(self, prompts: Any, labels: Any, *, errors: Errors = "raise") -> LabelScores:
        raise NotImplementedError

    def generate(
        self,
        prompts: Any,
        sampling: Sampling = Sampling(),  # noqa: B008
        *,
        errors: Errors = "raise",
    ) -> list[Completion]:
        raise NotImplementedError

    def stream(
        self,
        prompts: Any,
        sampling: Sampling = Sampling(),  # noqa: B008
    ) -> Generator[tuple[int, Completion], None, None]:
        yield from enumerate(self.generate(prompts, sampling))

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None: ...
