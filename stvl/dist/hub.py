"""Process 0: waits for the others, names those that did not come, and notices those that go."""

from __future__ import annotations

import selectors
import socket
import threading
import time
from typing import Any

from stvl.core.errors import ConfigError
from stvl.dist.links import Closed, Link, Message, listen
from stvl.dist.peers import (
    CALLED_OFF,
    CLEAN,
    PEER_LOST,
    PREEMPTED,
    UNBEGUN,
    Answers,
    End,
    Peers,
    PeersError,
    disagreements,
    end_process,
    listed,
    named,
)
from stvl.dist.place import Place


class Hub(Peers):
    """Process 0 of a program. `meet` it first; afterwards a thread of it watches all connections."""

    def __init__(self, place: Place, timeout: float = 60.0, end: End = end_process) -> None:
        super().__init__(place, timeout, end)
        self.facts: dict[int, dict[str, Any]] = {}
        self._links: dict[int, Link] = {}
        self._strangers: set[Link] = set()
        self._gone: dict[int, int] = {}
        self._values: dict[str, dict[int, Any]] = {}
        self._steps: dict[int, int] = {}
        self._problem: tuple[str, int] | None = None
        self._started = False
        self._selector = selectors.DefaultSelector()
        self._listener: socket.socket | None = None
        self._thread = threading.Thread(target=self._serve, name="stvl-peers", daemon=True)

    def meet(self, facts: dict[str, Any], start_timeout: float, strict: bool = True) -> None:
        """Wait until all processes have arrived, and let them start.

        Args:
            facts: what is known of this process; the entries of ``facts["same"]`` have to be the same on all.
            start_timeout: seconds to wait.
            strict: refuse processes whose ``same`` entries differ.

        Raises:
            PeersError: naming the processes that did not arrive, those that came twice, or the versions that differ; the
                processes that did arrive get the same message.
            ConfigError: the port is taken.
        """
        host, _, port = self.place.coordinator.rpartition(":")
        _raise_file_limit(self.place.processes)
        try:
            self._listener = listen(host.strip("[]"), int(port))
        except OSError as problem:
            raise ConfigError(
                f"process 0 cannot listen on port {port} ({problem.strerror}): another program holds it, perhaps an "
                "earlier run of this one; end that or take another port"
            ) from problem
        self.facts[0] = facts
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._thread.start()
        with self.state:
            self.state.wait_for(lambda: self._problem or self._complete(), start_timeout)
            if self._problem is None and not self._complete():
                self._problem = (self._who_is_missing(start_timeout), PEER_LOST)
            if self._problem is None and strict and (lines := disagreements(self.facts)):
                self._problem = ("the processes do not agree:\n  " + "\n  ".join(lines), 1)
            self._started = True
        self._close_listener()
        if self._problem is not None:
            self._broadcast({"kind": "stop", "text": self._problem[0], "code": self._problem[1]})
            self._close()
            raise PeersError(*self._problem, self.facts)
        self._broadcast({"kind": "go", "token": self.token, "host": facts.get("host", "")})

    def _complete(self) -> bool:
        return len(self.facts) == self.place.processes

    def _who_is_missing(self, seconds: float) -> str:
        names = [self.place.name(n) for n in range(self.place.processes) if n not in self.facts]
        here = listed([named(self.place, n, facts) for n, facts in sorted(self.facts.items())])
        return (
            f"{len(names)} of {self.place.processes} processes did not arrive within {seconds:g} s: {listed(names, 32)}. "
            f"Arrived: {here}. Each has to be started, with the same coordinator {self.place.coordinator}, whose port "
            "has to be open"
        )

    # ---- The thread ---------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        beaten = 0.0
        while not self._left:
            for key, _ in self._selector.select(self.look):
                if key.data is not None:
                    self._read(key.data)
                elif self._listener is not None:
                    self._accept(self._listener)
            now = time.monotonic()
            if now - beaten >= self.tick:
                beaten = now
                self._broadcast({"kind": "beat"})
            for process, link in list(self._links.items()):
                if (
                    process > 0
                    and process not in self._gone
                    and self._started
                    and now - link.heard > self.timeout
                ):
                    self._lost(process, f"silent for {self.timeout:g} s")

    def _accept(self, listener: socket.socket) -> None:
        try:
            link = Link(listener.accept()[0])
        except OSError:
            return
        self._strangers.add(link)
        self._selector.register(link, selectors.EVENT_READ, link)

    def _read(self, link: Link) -> None:
        try:
            for message in link.read():
                self._take(link, message)
        except (Closed, KeyError, TypeError, ValueError) as problem:
            self._drop(link)
            process = self._number(link)
            # Numbers below 0 are those that were refused.
            if process is not None and process > 0 and process not in self._gone:
                self._lost(process, str(problem))

    def _number(self, link: Link) -> int | None:
        return next((process for process, known in self._links.items() if known is link), None)

    def _take(self, link: Link, message: Message) -> None:
        process, kind = self._number(link), message.get("kind")
        if process is None:
            self._greet(link, message)
        elif kind == "put":
            with self.state:
                self._values.setdefault(str(message["name"]), {})[process] = message["value"]
                self.state.notify_all()
        elif kind == "want":
            self.want_stop()
        elif kind == "at":
            self._passed(process, int(message["step"]))
        elif kind == "bye":
            self._says_bye(process, int(message["code"]), str(message.get("text", "")))
        elif kind == "call_off":
            self._gone[process] = int(message["code"])
            self._end_all(str(message["text"]), int(message["code"]))

    def _greet(self, link: Link, message: Message) -> None:
        if message.get("kind") != "hello" or self._started:
            raise Closed("no greeting")
        process, count, facts = int(message["process"]), int(message["processes"]), dict(message["facts"])
        who = named(self.place, process, facts)
        with self.state:
            problem = ""
            if count != self.place.processes:
                problem = f"{who} was started as one of {count} processes, process 0 as one of {self.place.processes}"
            elif not 0 < process < count:
                problem = f"{who}: the processes that call process 0 are numbered from 1 to {count - 1}"
            elif process in self.facts:
                other = self.facts[process].get("host", "?")
                problem = (
                    f"two processes have the number {process}: on {other} and on {facts.get('host', '?')}"
                )
            self._links[-len(self._links) - 1 if problem else process] = link
            self._strangers.discard(link)
            if problem:
                self._problem = self._problem or (problem, 1)
            else:
                self.facts[process] = facts
            self.state.notify_all()

    def _lost(self, process: int, why: str) -> None:
        with self.state:
            self._gone[process] = PEER_LOST
            self.state.notify_all()
            if not self._started:
                # It may come again before the time is up.
                self._gone.pop(process)
                self._links.pop(process)
                self.facts.pop(process, None)
                return
        who = named(self.place, process, self.facts.get(process))
        self._end_all(f"{who} is gone ({why}): killed, out of memory, or its machine is down", PEER_LOST)

    def _says_bye(self, process: int, code: int, text: str) -> None:
        with self.state:
            self._gone[process] = code
            self.state.notify_all()
        if code not in CLEAN:
            who = named(self.place, process, self.facts.get(process))
            self._end_all(f"{who} ended with exit code {code}: {text}", code, self.grace)

    def _end_all(self, text: str, code: int, grace: float = 0.0) -> None:
        self._broadcast({"kind": "end", "text": text, "code": code, "grace": grace})
        # jax ends every process at once when its coordinator, which lives in this one, goes away.
        self.lose(text, code, grace or self.last)

    def _broadcast(self, message: Message) -> None:
        for process, link in list(self._links.items()):
            if process not in self._gone:
                try:
                    link.send(message)
                except Closed:
                    # The reading side notices the same and knows what to do.
                    continue

    def _drop(self, link: Link) -> None:
        self._selector.unregister(link)
        self._strangers.discard(link)
        link.close()

    # ---- Called by the program ----------------------------------------------------------------------------------

    def gather(self, name: str, value: Any, timeout: float) -> Answers:
        """See `Peers.gather`."""
        everyone = range(self.place.processes)
        with self.state:
            found = self._values.setdefault(name, {})
            found[0] = value
            self.state.wait_for(lambda: all(n in found or n in self._gone for n in everyone), timeout)
            missing = tuple(n for n in everyone if n not in found)
            values = dict(found)
        self._broadcast({"kind": "done", "name": name, "missing": missing})
        return Answers(values, missing)

    def want_stop(self) -> None:
        """See `Peers.want_stop`."""
        if self._promised is None:
            self._broadcast({"kind": "ask"})
            self._passed(0, self.promise())

    def call_off(self, text: str, code: int) -> None:
        """See `Peers.call_off`."""
        self._broadcast({"kind": "end", "text": text, "code": code, "grace": 0.0})
        # jax ends every process at once when its coordinator, which lives in this one, goes away.
        self.await_others(self.last)
        super().call_off(text, code)

    def _passed(self, process: int, step: int) -> None:
        if step == UNBEGUN:
            # A process that is still compiling, perhaps for minutes, holds up a step that all have to finish together.
            self.call_off(CALLED_OFF, PREEMPTED)
            return
        with self.state:
            self._steps[process] = step
            if len(self._steps) < self.place.processes or self._stop_at is not None:
                return
            last = max(self._steps.values()) + 1
        self._broadcast({"kind": "stop_at", "step": last})
        self.settle(last)

    def await_others(self, seconds: float) -> None:
        """Wait until all other processes have left, at most `seconds`."""
        with self.state:
            self.state.wait_for(lambda: len(self._gone) >= self.place.processes - 1, seconds)

    def leave(self, code: int = 0, text: str = "") -> None:
        """See `Peers.leave`."""
        if self._left:
            return
        if code in CLEAN:
            self._broadcast({"kind": "bye"})
        else:
            said = f"{named(self.place, 0, self.facts.get(0))} ended with exit code {code}: {text}"
            self._broadcast({"kind": "end", "text": said, "code": code, "grace": self.grace})
            with self.state:
                self._ending = True
            self.await_others(self.grace + self.last)
        super().leave(code, text)
        self._close()

    def _close_listener(self) -> None:
        if self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None

    def _close(self) -> None:
        self._left = True
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(2 * self.look)
        self._close_listener()
        for link in [*self._links.values(), *self._strangers]:
            link.close()
        self._selector.close()


def _raise_file_limit(processes: int) -> None:
    """Let one process hold a connection to each of many others; the usual soft limit is 1,024 open files."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = processes + 1024
    if soft != resource.RLIM_INFINITY and soft < wanted:
        top = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, top), hard))
