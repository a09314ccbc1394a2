"""Processes that meet, agree, stop together and go: with threads in place of processes, over real connections."""

from __future__ import annotations

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from stvl.core.errors import ConfigError
from stvl.dist.hub import Hub
from stvl.dist.links import Closed, Link, connect
from stvl.dist.peers import CALLED_OFF, PEER_LOST, Peers, PeersError, disagreements
from stvl.dist.place import Place
from stvl.dist.spoke import Spoke


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def facts(host: str, **same: str) -> dict[str, Any]:
    return {"host": host, "same": {"jax": "1.0", **same}}


class Group:
    """`count` processes as threads; what ends each is kept instead of ending this one."""

    def __init__(self, count: int, timeout: float = 5.0) -> None:
        port = free_port()
        self.ends: dict[int, tuple[str, int]] = {}
        self.ended = threading.Condition()
        self.peers: list[Any] = []
        for number in range(count):
            place = Place(f"127.0.0.1:{port}", count, number, "options")
            kind = Spoke if number else Hub
            self.peers.append(kind(place, timeout, self.note(number)))
            self.peers[-1].grace, self.peers[-1].last = 0.3, 0.1

    def note(self, number: int):
        def end(text: str, code: int) -> None:
            with self.ended:
                self.ends[number] = (text, code)
                self.ended.notify_all()

        return end

    def meet(self, *numbers: int, seconds: float = 10.0, given: dict[int, Any] | None = None) -> list[Any]:
        """Outcome by process: None, or the error."""

        def one(number: int) -> Any:
            try:
                return self.peers[number].meet((given or {}).get(number, facts(f"host{number}")), seconds)
            except PeersError as problem:
                return problem

        with ThreadPoolExecutor(len(numbers)) as pool:
            return list(pool.map(one, numbers))

    def both(self, call: Any, *numbers: int) -> list[Any]:
        with ThreadPoolExecutor(len(numbers)) as pool:
            return list(pool.map(lambda number: call(self.peers[number]), numbers))

    def wait_for_ends(self, *numbers: int, seconds: float = 8.0) -> None:
        with self.ended:
            assert self.ended.wait_for(lambda: self.ends.keys() >= set(numbers), seconds), self.ends

    def __enter__(self) -> Group:
        return self

    def __exit__(self, *problem: object) -> None:
        for peer in reversed(self.peers):
            peer.leave()


def test_all_arrive_gather_and_leave():
    with Group(3) as group:
        assert group.meet(0, 1, 2) == [None, None, None]
        assert len({peer.token for peer in group.peers}) == 1
        answers = group.both(lambda peer: peer.gather("sizes", peer.place.process * 2, 5.0), 0, 1, 2)
        assert answers[0].values == {0: 0, 1: 2, 2: 4} and answers[0].missing == ()
        assert [answer.missing for answer in answers] == [(), (), ()]
    assert group.ends == {}


def test_who_did_not_answer_is_known():
    with Group(3) as group:
        group.meet(0, 1, 2)
        answers = group.both(lambda peer: peer.gather("late", 1, 0.5), 0, 2)
        assert answers[0].values == {0: 1, 2: 1}
        assert [answer.missing for answer in answers] == [(1,), (1,)]


def test_who_did_not_arrive_is_named_on_all_that_did():
    with Group(4) as group:
        begin = time.monotonic()
        problems = group.meet(0, 2, seconds=1.0)
        assert 0.9 < time.monotonic() - begin < 4
    text = "2 of 4 processes did not arrive within 1 s: process 1, process 3. Arrived: process 0 (host0), process 2 (host2)"
    assert [str(problem).startswith(text) for problem in problems] == [True, True]
    assert [problem.exit_code for problem in problems] == [PEER_LOST, PEER_LOST]
    assert sorted(problems[0].facts) == [0, 2]


def test_process_0_that_did_not_arrive():
    with Group(2) as group:
        (problem,) = group.meet(1, seconds=0.6)
    assert "process 1 could not reach process 0 at 127.0.0.1:" in str(problem)
    assert "within 0.6 s: is the program started on every machine" in str(problem)


def test_versions_that_differ_are_refused_with_their_processes():
    with Group(4) as group:
        given = {2: facts("host2", jax="1.1"), 3: facts("host3", extra="x")}
        problems = group.meet(0, 1, 2, 3, given=given)
    assert problems[0].exit_code == problems[3].exit_code == 1
    assert str(problems[0]) == str(problems[2])
    assert str(problems[1]).splitlines()[1:] == [
        "  extra: None on process 0-2; x on process 3",
        "  jax: 1.0 on process 0-1, 3; 1.1 on process 2",
    ]


def test_disagreements_can_be_looked_at_instead():
    with Group(2) as group:
        with ThreadPoolExecutor() as pool:
            other = pool.submit(group.peers[1].meet, facts("host1", jax="2"), 5.0)
            group.peers[0].meet(facts("host0"), 5.0, strict=False)
            assert other.result() is None
        assert disagreements(group.peers[0].facts) == ["jax: 1.0 on process 0; 2 on process 1"]


def test_two_processes_with_one_number():
    with Group(3) as group:
        group.peers[2].place = group.peers[1].place
        problems = group.meet(0, 1, 2, given={1: facts("a"), 2: facts("a")})
    assert "two processes have the number 1: on a and on a" in str(problems[0])
    assert [problem.exit_code for problem in problems] == [1, 1, 1]


def test_another_number_of_processes():
    with Group(2) as group:
        group.peers[1].place = Place(group.peers[0].place.coordinator, 4, 1, "options")
        problems = group.meet(0, 1)
    assert "process 1 (host1) was started as one of 4 processes, process 0 as one of 2" in str(problems[1])


def test_a_port_that_is_taken():
    with Group(2) as group, socket.create_server(("127.0.0.1", 0)) as server:
        place = Place(f"127.0.0.1:{server.getsockname()[1]}", 2, 0, "options")
        group.peers[0] = Hub(place, 1.0)
        with pytest.raises(ConfigError, match=r"cannot listen on port .* another program holds it"):
            group.peers[0].meet(facts("a"), 1.0)


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\n\r\n", b'{"kind":"hello"}\n', b"[1]\n", b"\xff\n"])
def test_strangers_are_not_counted(sent):
    with Group(2) as group:
        with ThreadPoolExecutor() as pool:
            first = pool.submit(group.peers[0].meet, facts("a"), 5.0)
            host, _, port = group.peers[0].place.coordinator.rpartition(":")
            stranger = connect(host, int(port), time.monotonic() + 5)
            assert stranger is not None
            stranger._sock.sendall(sent)
            with pytest.raises(Closed):
                for _ in range(50):
                    stranger.wait(0.2)
            group.peers[1].meet(facts("b"), 5.0)
            assert first.result() is None
        stranger.close()


def test_a_process_that_dies_before_the_start_may_come_again():
    with Group(2) as group, ThreadPoolExecutor() as pool:
        first = pool.submit(group.peers[0].meet, facts("a"), 8.0)
        host, _, port = group.peers[0].place.coordinator.rpartition(":")
        dead = connect(host, int(port), time.monotonic() + 5)
        assert dead is not None
        # A third process is missing, so that the start cannot happen yet.
        group.peers[0].place = Place(group.peers[0].place.coordinator, 3, 0, "options")
        dead.send({"kind": "hello", "process": 1, "processes": 3, "facts": facts("b")})
        while 1 not in group.peers[0].facts:
            time.sleep(0.01)
        dead.close()
        while 1 in group.peers[0].facts:
            time.sleep(0.01)
        group.peers[0].place = group.peers[1].place.__class__(
            group.peers[1].place.coordinator, 2, 0, "options"
        )
        group.peers[1].meet(facts("b"), 5.0)
        assert first.result() is None


def test_a_process_that_dies_ends_the_others_at_once():
    with Group(3) as group:
        group.meet(0, 1, 2)
        begin = time.monotonic()
        # What the kernel does for a process that is killed.
        group.peers[1]._left = True
        group.peers[1]._link._sock.shutdown(socket.SHUT_RDWR)
        group.wait_for_ends(0, 2)
        assert time.monotonic() - begin < 4
    text, code = group.ends[2]
    assert text.startswith("process 1 (host1) is gone (end of stream): killed") and code == PEER_LOST
    assert group.ends[0] == group.ends[2]


def test_process_0_that_dies_ends_the_others():
    with Group(2) as group:
        group.meet(0, 1)
        group.peers[0]._left = True
        group.peers[0]._links[1]._sock.shutdown(socket.SHUT_RDWR)
        group.wait_for_ends(1)
    text, code = group.ends[1]
    assert text.startswith("process 0 (host0), the coordinator, is gone (") and code == PEER_LOST


def test_silence_is_noticed():
    with Group(2, timeout=0.6) as group:
        group.meet(0, 1)
        begin = time.monotonic()
        group.peers[1]._link.send = lambda message: None
        group.wait_for_ends(0, 1)
        assert 0.4 < time.monotonic() - begin < 5
    assert "process 1 (host1) is gone (silent for 0.6 s)" in group.ends[0][0]


def test_an_error_of_one_ends_the_others_with_its_code():
    with Group(3, timeout=1.0) as group:
        group.meet(0, 1, 2)
        group.peers[2].leave(4, "the loss of step 3 is nan")
        group.wait_for_ends(0, 1)
    assert group.ends[1] == ("process 2 (host2) ended with exit code 4: the loss of step 3 is nan", 4)


def test_an_error_of_process_0_ends_the_others_with_its_code():
    with Group(2, timeout=1.0) as group:
        group.meet(0, 1)
        with ThreadPoolExecutor() as pool:
            gone = pool.submit(group.peers[0].leave, 3, "damaged")
            group.wait_for_ends(1)
            group.peers[1].leave(3)
            gone.result()
    assert group.ends == {1: ("process 0 (host0) ended with exit code 3: damaged", 3)}


@pytest.mark.parametrize("code", [0, 75])
def test_one_may_finish_before_the_others(code):
    with Group(3, timeout=0.6) as group:
        group.meet(0, 1, 2)
        group.peers[2].leave(code)
        time.sleep(1.2)
        assert group.ends == {}
        group.peers[0].leave(code)
        time.sleep(0.9)
    assert group.ends == {}


def loop(peers: Peers, who: int, pause: float, together: threading.Barrier) -> int:
    """A training loop: the step after which it stopped, 0 where it did not. The first step needs all processes."""
    for step in range(1, 401):
        time.sleep(pause)
        if peers.stop_now(step, wanted=peers.place.process == who and step >= 5):
            return step
        if step == 1:
            together.wait(10)
    return 0


@pytest.mark.parametrize("who", [0, 1, 2])
def test_all_stop_after_the_same_step_whoever_asks(who):
    with Group(3) as group:
        group.meet(0, 1, 2)
        # Nothing keeps these loops in step: the fastest has gone far beyond the others when the question comes.
        start = threading.Barrier(3)
        found = group.both(lambda peer: loop(peer, who, 0.002 * (1 + peer.place.process), start), 0, 1, 2)
    assert len(set(found)) == 1 and 5 <= found[0] <= 30, found


@pytest.mark.parametrize("who", [0, 1])
def test_while_one_has_made_no_step_a_stop_ends_all_at_once(who):
    # The other one compiles, say: it would be asked after a step that it cannot make for minutes.
    with Group(2) as group:
        group.meet(0, 1)
        group.peers[who].stop_now(101, wanted=True)
        group.wait_for_ends(0, 1)
    assert group.ends == {0: (CALLED_OFF, 75), 1: (CALLED_OFF, 75)}


@pytest.mark.parametrize("who", [0, 1])
def test_calling_off_ends_all_at_once(who):
    with Group(3) as group:
        group.meet(0, 1, 2)
        group.peers[who].call_off("enough", 75)
        group.wait_for_ends(0, 1, 2)
    assert group.ends == dict.fromkeys(range(3), ("enough", 75))


def test_the_only_process_stops_when_it_wants_to():
    alone = Peers(Place("", 1, 0, "alone"))
    assert [alone.stop_now(step, wanted=step >= 3) for step in (1, 2, 3)] == [False, False, True]
    assert alone.gather("x", 5, 1.0).values == {0: 5}


def test_links_refuse_what_is_no_message():
    with socket.create_server(("127.0.0.1", 0)) as server:
        other = socket.create_connection(server.getsockname())
        link = Link(server.accept()[0])
    other.sendall(json.dumps({"a": 1}).encode() + b"\n{}\n{")
    assert link.wait(1.0) == [{"a": 1}, {}]
    assert link.wait(0.01) == []
    other.sendall(b"}\nno\n")
    with pytest.raises(Closed, match="no JSON"):
        link.wait(1.0)
    other.close()
    with pytest.raises(Closed, match="end of stream"):
        link.wait(1.0)
    link.close()
