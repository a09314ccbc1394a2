"""Every process but the first: greets process 0, waits for the start, and listens."""

from __future__ import annotations

import threading
import time
from typing import Any

from stvl.dist.links import Closed, Link, Message, connect
from stvl.dist.peers import CLEAN, PEER_LOST, Answers, End, Peers, PeersError, end_process, named
from stvl.dist.place import Place

_WHY = ": killed, out of memory, or its machine is down"


class Spoke(Peers):
    """A process other than 0. `meet` it first; afterwards a thread of it watches the connection."""

    def __init__(self, place: Place, timeout: float = 60.0, end: End = end_process) -> None:
        super().__init__(place, timeout, end)
        self._done: dict[str, tuple[int, ...]] = {}
        self._link: Link | None = None
        self._thread: threading.Thread | None = None
        self._bye, self._host = False, ""

    def meet(self, facts: dict[str, Any], start_timeout: float) -> None:
        """Arrive, and wait until all have.

        Raises:
            PeersError: process 0 does not answer within `start_timeout` seconds, or calls the start off; it says why.
        """
        host, _, port = self.place.coordinator.rpartition(":")
        begin = time.monotonic()
        link = connect(host.strip("[]"), int(port), begin + start_timeout)
        if link is None:
            raise PeersError(
                f"{self.place.name(self.place.process)} could not reach {self.place.name(0)} at "
                f"{self.place.coordinator} within {start_timeout:g} s: is the program started on every machine, and is "
                "the port open between them?"
            )
        greeting = {"kind": "hello", "process": self.place.process, "processes": self.place.processes}
        try:
            link.send({**greeting, "facts": facts})
            self._await_start(link)
        except (Closed, PeersError) as problem:
            link.close()
            if isinstance(problem, PeersError):
                raise
            raise PeersError(
                f"{self.place.name(0)} at {self.place.coordinator} closed the connection before the start ({problem}); "
                "its own message says why"
            ) from problem
        self._link = link
        self._thread = threading.Thread(target=self._watch, args=(link,), name="stvl-peers", daemon=True)
        self._thread.start()

    def _await_start(self, link: Link) -> None:
        """Read until process 0 says go; it shows signs of life while it waits for the others."""
        while True:
            for message in link.wait(self.tick):
                if message.get("kind") == "go":
                    self.token, self._host = str(message.get("token", "")), str(message.get("host", ""))
                    return
                if message.get("kind") == "stop":
                    raise PeersError(str(message["text"]), int(message["code"]))
            if time.monotonic() - link.heard > self.timeout:
                raise Closed(f"silent for {self.timeout:g} s")

    def _watch(self, link: Link) -> None:
        sent = 0.0
        try:
            while not self._left:
                if time.monotonic() - sent >= self.tick:
                    link.send({"kind": "beat"})
                    sent = time.monotonic()
                for message in link.wait(self.look):
                    self._take(link, message)
                if time.monotonic() - link.heard > self.timeout:
                    raise Closed(f"silent for {self.timeout:g} s")
        except Closed as problem:
            if not self._bye:
                self._lost(problem)

    def _take(self, link: Link, message: Message) -> None:
        kind = message.get("kind")
        if kind == "done":
            with self.state:
                self._done[str(message["name"])] = tuple(message["missing"])
                self.state.notify_all()
        elif kind == "ask":
            link.send({"kind": "at", "step": self.promise()})
        elif kind == "stop_at":
            self.settle(int(message["step"]))
        elif kind == "bye":
            self._bye = True
        elif kind == "end":
            self.lose(str(message["text"]), int(message["code"]), float(message.get("grace", 0.0)))

    def gather(self, name: str, value: Any, timeout: float) -> Answers:
        """See `Peers.gather`."""
        self._say({"kind": "put", "name": name, "value": value})
        with self.state:
            # Process 0 keeps the time; this is for the case that it does not answer at all.
            self.state.wait_for(lambda: name in self._done, timeout + 2 * self.tick + self.grace)
            return Answers({self.place.process: value}, self._done.get(name, (0,)))

    def want_stop(self) -> None:
        """See `Peers.want_stop`."""
        self._say({"kind": "want"})

    def call_off(self, text: str, code: int) -> None:
        """See `Peers.call_off`."""
        self._say({"kind": "call_off", "code": code, "text": text})
        super().call_off(text, code)

    def leave(self, code: int = 0, text: str = "") -> None:
        """See `Peers.leave`."""
        if not self._left:
            self._say({"kind": "bye", "code": code, "text": text})
        super().leave(code, text)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(2 * self.look)
        if self._link is not None and code in CLEAN:
            self._link.close()

    def _lost(self, problem: Closed) -> None:
        who = named(self.place, 0, {"host": self._host})
        self.lose(f"{who}, the coordinator, is gone ({problem}){_WHY}", PEER_LOST)

    def _say(self, message: Message) -> None:
        if self._link is None:
            return
        try:
            self._link.send(message)
        except Closed as problem:
            if not self._bye:
                self._lost(problem)
