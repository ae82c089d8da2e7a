"""Processes that start, stop and fail together, without what they train."""

import inspect
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from jax._src.clusters import ClusterEnv
from jax._src.distributed import global_state
from jax._src.lib import _jax

from jaxbooth.distributed.group import SingleProcess
from jaxbooth.distributed.process_info import ProcessInfo
from jaxbooth.distributed.rendezvous import READY, Connection, Coordinator
from jaxbooth.distributed.stop_agreement import StopAgreement
from jaxbooth.errors import UserError
from tests.commands import environment
from tests.processes import check_told_of, free_port, outputs

MOMENT = 0.5  # seconds in which a message over loopback arrives


def ignore(_name: str) -> None:
    """Does nothing about a process that is gone."""


def start_coordinator(num_processes, timeout=20.0, notice=10.0, lost=ignore):
    """Returns process 0's side, listening, and what says so."""
    info = ProcessInfo(f"127.0.0.1:{free_port()}", num_processes, 0)
    return Coordinator(info, timeout, notice, lost), info


def as_address(text):
    """Returns host and port as sockets take them."""
    host, port = text.split(":")
    return host, int(port)


def join(info, facts):
    """Lets one thread for each of `facts` join; returns what came of it."""

    def wait(process_id):
        connection = Connection(info._replace(process_id=process_id), facts[process_id], 20, 10, ignore)
        return connection.wait(), connection

    with ThreadPoolExecutor(len(facts)) as pool:
        return list(pool.map(wait, range(len(facts))))


def test_who_is_missing_is_said_while_waiting_and_in_the_end(capfd):
    _coordinator, info = start_coordinator(4, timeout=1.5, notice=0.5)
    (first, _), (second, _) = join(info, [{}, {}])
    assert first == second
    assert first["kind"] == "error"
    assert "not all processes started within 1.5 s: process 0 (" in first["text"]
    assert "joined; process 2, 3 of 4 did not." in first["text"]
    waiting = capfd.readouterr().err
    assert "waiting for all processes: process 0 (" in waiting
    assert "process 2, 3 of 4 did not" in waiting


def test_a_process_that_does_not_find_the_first_says_where_it_looked(capfd):
    info = ProcessInfo(f"127.0.0.1:{free_port()}", 2, 1)
    with pytest.raises(UserError, match=rf"process 1 .* could not reach process 0 at {info.coordinator} within 1 s"):
        Connection(info, {}, 1, 0.3, ignore)
    assert f"process 0 at {info.coordinator} cannot be reached yet" in capfd.readouterr().err


def test_a_port_that_is_taken_is_named():
    _coordinator, info = start_coordinator(2)
    with pytest.raises(UserError, match=rf"--distributed.coordinator {info.coordinator}: process 0 cannot listen"):
        Coordinator(info, 1, 1, ignore)


def test_what_differs_between_processes_is_named():
    _coordinator, info = start_coordinator(2)
    outcomes = join(info, [{"--train.steps": "10", "jax version": "1"}, {"--train.steps": "20", "jax version": "1"}])
    for outcome, _ in outcomes:
        assert outcome["kind"] == "error"
        assert "process 1" in outcome["text"]
        assert "has --train.steps 20, and process 0" in outcome["text"]
        assert "has 10; start the same command" in outcome["text"]


def test_a_process_that_is_killed_before_all_have_joined_ends_the_others():
    _coordinator, info = start_coordinator(3)
    first = Connection(info, {}, 20, 10, ignore)
    killed = Connection(info._replace(process_id=1), {}, 20, 10, ignore)
    time.sleep(MOMENT)
    killed._connection.shutdown(socket.SHUT_RDWR)
    outcome = first.wait()
    assert outcome["kind"] == "gone"
    assert outcome["text"].startswith("process 1 (")
    assert outcome["text"].endswith(" is gone: it was killed, or its machine stopped.")


def test_two_processes_of_one_number_are_an_error():
    _coordinator, info = start_coordinator(3)
    first = Connection(info._replace(process_id=1), {}, 20, 10, ignore)
    time.sleep(MOMENT)
    outcome = Connection(info._replace(process_id=1), {}, 20, 10, ignore).wait()
    assert outcome["kind"] == "error"
    assert outcome["text"].startswith("there are two processes 1: process 1 (")
    first._connection.close()


@pytest.mark.parametrize(
    "stranger", [b"", b"GET / HTTP/1.1\r\n\r\n", b'{"process_id": 7}\n', b'{"process_id": 1}\n', b"[]\n"]
)
def test_who_is_no_process_of_the_run_does_not_get_in(stranger):
    _coordinator, info = start_coordinator(2)
    with socket.create_connection(info.address) as connection:
        connection.sendall(stranger)
        assert join(info, [{}, {}])[1][0] == READY


def test_a_stop_before_everyone_has_come_sends_all_home():
    _coordinator, info = start_coordinator(3)
    connections = [Connection(info._replace(process_id=process_id), {}, 20, 10, ignore) for process_id in range(2)]
    time.sleep(MOMENT)
    connections[1].stop()
    assert [connection.wait()["kind"] for connection in connections] == ["stop", "stop"]


def test_the_bytes_of_jax_pass_through_and_its_client_does_not_see_the_end_of_process_0():
    lost, gone = [], []
    coordinator, info = start_coordinator(2, lost=gone.append)
    connections = [Connection(info._replace(process_id=process_id), {}, 20, 10, lost.append) for process_id in range(2)]
    assert [connection.wait() for connection in connections] == [READY, READY]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(info.address)  # nobody gets in any more
    client = socket.create_connection(as_address(connections[1].open_relay()), timeout=10)
    client.sendall(b"question")
    time.sleep(MOMENT)
    with socket.create_server(as_address(coordinator.service_address)) as server:
        service, _ = server.accept()  # which may start after the client
    assert service.recv(100) == b"question"
    service.sendall(b"answer")
    assert client.recv(100) == b"answer"
    coordinator._connections[1].shutdown(socket.SHUT_RDWR)  # as the kernel does when a process is killed
    client.settimeout(MOMENT)
    for word in (b"are you", b"still", b"there"):
        client.sendall(word)
        with pytest.raises(TimeoutError):
            client.recv(100)
    assert lost == ["process 0"]
    assert gone[0].startswith("process 1 (")


def test_a_single_process_hears_itself():
    assert SingleProcess(lambda: None).exchange(3) == [3]


def test_a_single_process_stops_where_it_is():
    alone = SingleProcess(lambda: None)
    alone.stop_agreement.begin(0)
    assert alone.stop_agreement.may_run_to(5)
    alone.request_stop()
    assert not alone.stop_agreement.may_run_to(6)


def test_the_loop_waits_while_the_last_step_is_agreed_on():
    agreement = StopAgreement()
    agreement.begin(0)
    agreement.freeze()
    threading.Timer(0.2, agreement.set_last_step, args=(7,)).start()
    assert agreement.may_run_to(7)
    assert not agreement.may_run_to(8)


TOGETHER = """
import sys, time
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from jaxbooth.console.messages import print_stderr
from jaxbooth.distributed.group import process_group
from jaxbooth.distributed.process_info import ProcessInfo
from jaxbooth.errors import UserError
port, count, process_id, what = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
try:
    with process_group(ProcessInfo(f"127.0.0.1:{port}", count, process_id), {}, 300, "stopped.") as processes:
        print("joined", processes.exchange(process_id * 10), flush=True)
        if what == "stop":
            agreement, reached = processes.stop_agreement, (4, 8, 6, None)[process_id]
            if reached is not None:
                agreement.begin(0)
                assert agreement.may_run_to(reached)
            processes.exchange("has begun")
            if process_id == 2:
                processes.request_stop()
            if reached is None:
                time.sleep(2)
                agreement.begin(0)
            while not agreement.is_stopping:
                time.sleep(0.1)
            print("goes on to", [agreement.may_run_to(step) for step in (8, 10)], flush=True)
        if what == "stop outside" and process_id == 1:
            processes.request_stop()
        if what == "fail" and process_id == 1:
            raise UserError("the subject is missing.")
        while what == "compute":
            print("computed", process_allgather(np.ones(1)).sum().astype(int), flush=True)
        if what != "stop":
            time.sleep(300)
except UserError as error:
    print_stderr(f"error: {error}")
    sys.exit(2)
"""


def test_a_warning_before_the_processes_join_leaves_jax_to_be_initialized():
    source = (
        "from jax._src.xla_bridge import backends_are_initialized; from jaxbooth.console.messages import warn; "
        "warn('early'); print(backends_are_initialized())"
    )
    shown = subprocess.run([sys.executable, "-c", source], env=environment(), capture_output=True, text=True)
    assert shown.stdout == "warning: early\nFalse\n"


def start_together(count, what):
    """Starts processes that join, say what they have exchanged, and then do something."""
    port = free_port()
    return [
        subprocess.Popen(
            list(map(str, [sys.executable, "-c", TOGETHER, port, count, process_id, what])),
            env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for process_id in range(count)
    ]  # fmt: skip


def test_four_processes_join_exchange_values_stop_at_the_furthest_step_of_any_and_leave():
    running = start_together(4, "stop")
    assert outputs(running) == ["joined [0, 10, 20, 30]\ngoes on to [True, False]\n"] * 4
    assert [process.returncode for process in running] == [0] * 4


def test_outside_of_the_loop_everyone_stops_at_once():
    running = start_together(2, "stop outside")
    assert outputs(running) == ["joined [0, 10]\nstopped.\n", "joined [0, 10]\n"]
    assert [process.returncode for process in running] == [0, 0]


def test_an_error_of_one_process_is_the_sentence_of_all():
    running = start_together(2, "fail")
    first, second = outputs(running)
    assert first.startswith("joined [0, 10]\nerror: process 1 (")
    assert first.endswith("): the subject is missing.\n")
    assert second == "joined [0, 10]\nerror: the subject is missing.\n"
    assert [process.returncode for process in running] == [1, 2]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed_among_collectives_is_the_only_sentence_of_the_others(victim):
    running = start_together(3, "compute")
    for process in running:
        while process.stdout.readline() not in ("computed 3\n", ""):
            pass
    running[victim].kill()
    began = time.monotonic()
    printed = outputs(running)
    for process_id in {0, 1, 2} - {victim}:
        check_told_of(victim, printed[process_id], time.monotonic() - began)
        assert running[process_id].returncode == 1


def test_what_jax_has_no_public_name_for_is_where_it_was():
    assert global_state.client is None
    for method in ("key_value_set", "key_value_dir_get", "blocking_key_value_get"):
        assert hasattr(_jax.DistributedRuntimeClient, method)
    parameters = inspect.signature(ClusterEnv.auto_detect_unset_distributed_params).parameters
    assert list(parameters)[:3] == ["coordinator_address", "num_processes", "process_id"]
    assert len(parameters) == 6
