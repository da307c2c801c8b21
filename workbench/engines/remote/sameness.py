"""What makes several servers, or one after it was away, the same model: never only a name.

A revision that they tell vouches for the weights. Where there is none, a fingerprint of what they
answer does; where not even that can be had, their names must do and nothing is stored.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace

from workbench.engines.chat import ChatOptions
from workbench.engines.remote import wire
from workbench.engines.remote.discovery import Served, explain, gives_named_logprobs, look
from workbench.engines.remote.endpoint import Endpoint
from workbench.engines.remote.faults import Broken, Down, Fatal, Fault
from workbench.engines.remote.fingerprint import Print, known_as, same, take
from workbench.errors import EngineUnavailableError, InputError
from workbench.store import Store

log = logging.getLogger("workbench")
SEVERAL = "Several servers must have the same model"
OTHER = "it serves the model with other weights or options"


class Sameness:
    """The model that a call's servers must have.

    Args:
        revision: the user's own word for the weights, which needs no fingerprint; or None.
        chats: what the caller decided about chats.
    """

    served: Served

    def __init__(self, revision: str | None, chats: ChatOptions) -> None:
        self._revision = revision
        self._print: Print | None = None
        self.dialect = wire.Dialect(chats=chats)

    async def establish(self, endpoints: Sequence[Endpoint], model: str | None) -> Served:
        """Find the model that the servers have; those that do not answer now are absent.

        Raises:
            InputError: the model is not among those listed, or servers differ in it.
            EngineUnavailableError: no server answers as one should.
        """
        found = await asyncio.gather(*(_first_look(endpoint, model) for endpoint in endpoints))
        there = [(e, s) for e, s in zip(endpoints, found, strict=True) if s is not None]
        if there:
            first, self.served = there[0]
            self.dialect = replace(self.dialect, vllm=first.vllm)
            for endpoint, served in there:
                if why := self._unlike(served):
                    why = endpoint.clean(why)
                    raise InputError(f"{endpoint.shown}: {why} like {first.shown}. {SEVERAL}")
            if not (self._revision or self.served.revision):
                await self._compare([endpoint for endpoint, _ in there])
        absent = [e for e in endpoints if e.absent is not None]
        if len(absent) == len(endpoints):
            raise EngineUnavailableError("; ".join(f"{e.shown}: {e.absent}" for e in absent))
        for endpoint in absent:
            log.warning("%s is left out until it answers: %s", endpoint.shown, endpoint.absent)
        return self.served

    async def _compare(self, there: Sequence[Endpoint]) -> None:
        """Take the fingerprints of all servers; one that cannot be asked is absent.

        Raises:
            InputError: they differ.
        """
        asked = (take(endpoint, self.served.name, self.dialect) for endpoint in there)
        prints: list[tuple[Endpoint, Print | None]] = []
        faults: list[tuple[Endpoint, Fault]] = []
        for endpoint, told in zip(
            there, await asyncio.gather(*asked, return_exceptions=True), strict=True
        ):
            if isinstance(told, Fault):
                faults.append((endpoint, told))
            elif isinstance(told, BaseException):
                raise told
            else:
                prints.append((endpoint, told))
        for endpoint, fault in faults:
            # One that is busy or broken now may be worked with all the same, but without a store.
            if prints or isinstance(fault, Down | Fatal):
                endpoint.absent = explain(endpoint, fault)
        for endpoint, told in prints:
            self._print = prints[0][1]
            if not same(self._print, told):
                raise InputError(f"{endpoint.shown}: {OTHER} than {prints[0][0].shown}. {SEVERAL}")

    def _unlike(self, served: Served) -> str | None:
        """Why what a server lists is another model; its path counts where nothing better does."""
        mine, others = self.served, served
        if (mine.name, mine.revision) == (others.name, others.revision):
            vouched = mine.revision or self._revision or self._print is not None
            if vouched or mine.root == others.root:
                return None
        return f"it serves {_told(others)}, not {_told(mine)}"

    async def check(self, endpoint: Endpoint) -> None:
        """Whether a server has this model now.

        Raises:
            Fatal: it has another.
            Fault: it does not answer.
        """
        try:
            served = await look(endpoint, self.served.name)
        except InputError as error:
            raise Fatal(str(error)) from None
        if why := self._unlike(served):
            raise Fatal(f"{why}, as when this engine was opened: open it again")
        if self._print is None:
            return
        for _ in range(3):  # a batch with others' requests may change it a little
            now = await take(endpoint, self.served.name, self.dialect, like=self._print)
            if same(self._print, now):
                return
        raise Fatal(f"{OTHER} than when this engine was opened: open it again")

    def fingerprint(self, first: Endpoint, store: Store | None) -> str | None:
        """A name for the weights as they answer, None where that is not known."""
        if self._print is None:
            return None
        place = [first.url, self.served.name]
        return f"fingerprint {known_as(self._print, place, store, first.shown)}"


async def _first_look(endpoint: Endpoint, model: str | None) -> Served | None:
    """What a server serves; None leaves the reason in `absent`."""
    try:
        served = await look(endpoint, model)
        if not endpoint.vllm:
            endpoint.exact = await gives_named_logprobs(endpoint, served.name)
            endpoint.vllm = bool(endpoint.exact)  # by another name, as behind a gateway
    except Fault as fault:
        endpoint.absent = explain(endpoint, fault)
        return None
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001  # whatever a server sends
        odd = Broken(endpoint.clean(f"{type(error).__name__}: {error}"))
        endpoint.absent = explain(endpoint, odd)
        return None
    return served


def _told(served: Served) -> str:
    return f"{served.name} ({served.revision or served.root or 'no revision told'})"
