"""Processes that start, stop and fail together, without what they train."""

import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from jaxbooth.config.schema import DistributedConfig
from jaxbooth.errors import RunFailure, UserError
from jaxbooth.hosts.coordinator import Coordinator
from jaxbooth.hosts.gate import Gate
from jaxbooth.hosts.link import Alone, Link, reach
from jaxbooth.hosts.place import Place, find_place
from jaxbooth.hosts.relay import relay
from jaxbooth.hosts.wire import Wire
from tests.processes import free_port

MOMENT = 0.5  # seconds in which a message over loopback arrives
CLUSTER = ("SLURM_", "OMPI_", "TPU_", "MEGASCALE_", "KUBERNETES_SERVICE_HOST", "JAX_COORDINATOR")


def join(facts: list[dict], expected: int | None = None, timeout: float = 20, notice: float = 10) -> list:
    """Links one thread for each of `facts`; returns each one's link, or the error that it met."""
    port, processes = free_port(), expected or len(facts)
    Coordinator(("127.0.0.1", port), processes, timeout, notice)
    stops = [threading.Event() for _ in facts]

    def link(index: int):
        place = Place(f"127.0.0.1:{port}", processes, index)
        try:
            joined = Link(place, facts[index], timeout, notice, stops[index].set)
            joined.was_stopped = stops[index]
            joined.await_all()
            return joined
        except UserError as error:
            return error

    with ThreadPoolExecutor(len(facts)) as pool:
        return list(pool.map(link, range(len(facts))))


def together(links: list[Link], call):
    """Calls a function of (index, link) in a thread for each link."""
    with ThreadPoolExecutor(len(links)) as pool:
        return list(pool.map(call, range(len(links)), links))


@pytest.fixture
def nowhere(monkeypatch):
    """No launcher's environment."""
    import os

    for name in list(os.environ):
        if name.startswith(CLUSTER):
            monkeypatch.delenv(name)


def test_an_exchange_gives_everyone_what_each_has_said():
    links = join([{}] * 3)
    assert together(links, lambda index, link: link.exchange(index * 10)) == [[0, 10, 20]] * 3
    assert together(links, lambda index, link: link.exchange({"name": index}))[2][1] == {"name": 1}
    for link in links:
        link.close()


def test_a_process_alone_hears_itself():
    assert Alone(lambda: None).exchange(3) == [3]


def test_who_is_missing_is_said_while_waiting_and_in_the_end(capfd):
    first, second = join([{}, {}], expected=4, timeout=1.5, notice=0.5)
    assert "process 0" in str(first)
    assert "process 1" in str(first)
    assert "joined; process 2, 3 of 4 did not" in str(first)
    assert str(first) == str(second)
    waiting = capfd.readouterr().err
    assert "waiting for all processes: process 0 (" in waiting
    assert "process 2, 3 of 4 did not" in waiting


def test_a_process_that_does_not_find_the_first_says_where_it_looked(capfd):
    place = Place(f"127.0.0.1:{free_port()}", 2, 1)
    with pytest.raises(UserError, match=rf"process 1 .* could not reach process 0 at {place.coordinator} within 1 s"):
        Link(place, {}, 1, 0.3, lambda: None)
    assert f"process 0 at {place.coordinator} cannot be reached yet" in capfd.readouterr().err


def test_what_differs_between_processes_is_named():
    errors = join([{"--train.steps": "10", "jax version": "1"}, {"--train.steps": "20", "jax version": "1"}])
    for error in errors:
        assert "process 1" in str(error)
        assert "has --train.steps 20, and process 0" in str(error)
        assert "has 10; start the same command" in str(error)


def test_a_process_that_is_killed_before_all_have_joined_fails_the_others():
    port = free_port()
    Coordinator(("127.0.0.1", port), 3, 20, 10)
    killed = Wire(reach(Place(f"127.0.0.1:{port}", 3, 1), 20, 10))
    killed.send(index=1, name="process 1 (b)", facts={})
    threading.Timer(MOMENT, killed.close).start()
    with pytest.raises(RunFailure, match=r"process 1 \(b\) is gone: it was killed, or its machine stopped\."):
        Link(Place(f"127.0.0.1:{port}", 3, 0), {}, 20, 10, lambda: None).await_all()


def test_what_jax_says_to_process_0_passes_through_and_the_end_of_process_0_does_not():
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, port = relay(server.getsockname()).split(":")
        near = socket.create_connection((host, int(port)), timeout=10)
        far, _ = server.accept()
        others = [socket.create_connection((host, int(port)), timeout=10) for _ in range(2)]
        for _ in others:
            server.accept()
    near.sendall(b"question")
    assert far.recv(100) == b"question"
    far.sendall(b"answer")
    assert near.recv(100) == b"answer"
    far.close()
    near.settimeout(MOMENT)
    for word in (b"are you", b"still", b"there"):  # the relay finds out that nobody hears it
        near.sendall(word)
        with pytest.raises(TimeoutError):
            near.recv(100)
    for connection in (near, *others):
        connection.close()


def test_two_processes_of_one_number_are_an_error():
    port = free_port()
    Coordinator(("127.0.0.1", port), 3, 20, 10)
    place = Place(f"127.0.0.1:{port}", 3, 1)
    first = Wire(reach(place, 20, 10))
    first.send(index=1, name="process 1 (first)", facts={})
    time.sleep(MOMENT)
    with pytest.raises(UserError, match=r"there are two processes 1: process 1 \(first\) and process 1"):
        Link(place, {}, 1, 10, lambda: None).await_all()
    first.close()


def test_everyone_stops_at_the_furthest_step_that_anyone_has_begun():
    links = join([{}] * 3)
    for link, reached in zip(links, (4, 8, 6), strict=True):
        link.gate.enter(0)
        assert link.gate.passes(reached)
    links[2].ask_to_stop()
    time.sleep(MOMENT)
    going_on = together(links, lambda index, link: [link.gate.passes(step) for step in (8, 10)])
    assert going_on == [[True, False]] * 3
    assert all(link.gate.closing for link in links)


def test_a_stop_before_everyone_has_come_sends_all_home():
    port = free_port()
    Coordinator(("127.0.0.1", port), 3, 20, 10)
    stops = [threading.Event() for _ in range(2)]
    for index in range(2):  # the second one joins when the first was asked to stop
        link = Link(Place(f"127.0.0.1:{port}", 3, index), {}, 20, 10, stops[index].set)
        threading.Thread(target=link.await_all, daemon=True).start()
        if index == 0:
            link.ask_to_stop()
            assert stops[0].wait(10)
    assert stops[1].wait(10)


def test_outside_of_the_loop_everyone_stops_at_once():
    links = join([{}] * 2)
    links[1].ask_to_stop()
    assert all(link.was_stopped.wait(10) for link in links)


def test_a_process_that_has_not_begun_goes_on_to_the_step_of_the_others():
    links = join([{}] * 2)
    links[0].gate.enter(0)
    assert links[0].gate.passes(10)
    links[0].ask_to_stop()
    time.sleep(MOMENT)
    assert not links[0].gate.passes(20)
    links[1].gate.enter(0)
    assert links[1].gate.passes(10)
    assert not links[1].gate.passes(20)
    assert not any(link.was_stopped.is_set() for link in links)


def test_the_gate_of_a_process_alone_closes_where_it_is():
    alone = Alone(lambda: None)
    alone.gate.enter(0)
    assert alone.gate.passes(5)
    alone.ask_to_stop()
    assert not alone.gate.passes(6)


def test_a_gate_waits_while_the_last_step_is_agreed_on():
    gate = Gate()
    gate.enter(0)
    gate.freeze()
    threading.Timer(0.2, gate.close, args=(7,)).start()
    assert gate.passes(7)
    assert not gate.passes(8)


WORK = """
import signal, sys, time
from jaxbooth.hosts.link import Alone
from jaxbooth.hosts.signals import handled, leave, requests, watch_signals
with handled(leave, *requests()):
    if "loop" in sys.argv:
        link = Alone(lambda: None)
        with watch_signals(link):
            link.gate.enter(0)
            print("up", flush=True)
            for step in range(200):
                if not link.gate.passes(step):
                    time.sleep(0.5)  # saving
                    sys.exit("saved")
                time.sleep(0.05)
    else:
        print("up", flush=True)
        time.sleep(10)
print("to its end", flush=True)
"""


def signalled(command: list[str], numbers: list[signal.Signals]) -> tuple[int, str]:
    """Sends signals to a program that has come up; returns its exit code and the rest of what it prints."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout
        while process.stdout.readline() not in ("up\n", ""):
            pass
        for number in numbers:
            process.send_signal(number)
            time.sleep(0.1)
        return process.wait(60), process.stdout.read()


@pytest.mark.parametrize("numbers", [[signal.SIGTERM], [signal.SIGHUP], [signal.SIGHUP, signal.SIGHUP]])
def test_a_signal_or_the_end_of_the_terminal_saves_and_leaves(numbers):
    assert signalled([sys.executable, "-c", WORK, "loop"], numbers) == (1, "saved\n")


@pytest.mark.parametrize("numbers", [[signal.SIGTERM], [signal.SIGHUP, signal.SIGHUP]])
def test_before_there_is_anything_to_save_a_signal_leaves(numbers):
    assert signalled([sys.executable, "-c", WORK], numbers) == (0, "stopped; run the same command again.\n")


def test_what_nohup_started_goes_on_when_the_terminal_ends():
    command = ["nohup", sys.executable, "-c", WORK, "loop"]
    assert signalled(command, [signal.SIGHUP]) == (0, "to its end\n")


def test_a_laptop_is_alone(nowhere):
    assert find_place(DistributedConfig()) is None


def test_slurm_is_recognised(nowhere, monkeypatch):
    values = {"JOB_ID": 4096, "STEP_NODELIST": "node[007-009]", "NTASKS": 3, "PROCID": 2, "LOCALID": 0}
    for name, value in values.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    place = find_place(DistributedConfig())
    assert place == Place("node007:61440", 3, 2, [0])


def test_a_single_task_of_slurm_is_alone(nowhere, monkeypatch):
    values = {"JOB_ID": 4096, "STEP_NODELIST": "node007", "NTASKS": 1, "PROCID": 0, "LOCALID": 0}
    for name, value in values.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    assert find_place(DistributedConfig()) is None


def test_flags_describe_a_place():
    chosen = DistributedConfig(coordinator="[::1]:8476", processes=2, process=1)
    place = find_place(chosen)
    assert place == Place("[::1]:8476", 2, 1)
    assert place.address == ("::1", 8476)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"processes": 2, "process": 0}, "--distributed.coordinator is missing"),
        ({"coordinator": "a:1", "process": 0}, "--distributed.processes is missing"),
        ({"coordinator": "a:1", "processes": 2}, "--distributed.process is missing"),
        ({"coordinator": "a", "processes": 2, "process": 0}, "is not HOST:PORT"),
        ({"coordinator": "a:99999", "processes": 2, "process": 0}, "is not HOST:PORT"),
        ({"coordinator": "a:1", "processes": 2, "process": 2}, "they are numbered 0 to 1"),
    ],
)
def test_half_a_place_is_an_error(flags, sentence):
    with pytest.raises(UserError, match=sentence):
        find_place(DistributedConfig(**flags))
