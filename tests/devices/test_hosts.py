"""How processes meet and agree, as far as one can tell alone; the rest is in test_processes.py."""

import argparse
import io
import os
import signal
import subprocess
import sys

import jax
import pytest

from sisma_jax.common.errors import InputError
from sisma_jax.devices import hosts

ALL = {"--coordinator": "localhost:1", "--processes": "2", "--process": "1"}


def parse(options):
    parser = argparse.ArgumentParser()
    hosts.add_arguments(parser)
    return parser.parse_args([word for pair in options.items() for word in pair if word])


@pytest.fixture
def met(monkeypatch):
    """What JAX was told to meet with."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *given: calls.append(given))
    return calls


def test_without_options_a_process_is_alone(met):
    hosts.join(parse({}))
    assert met == []


def test_the_options_are_handed_on(met):
    hosts.join(parse(ALL))
    hosts.join(parse({"--distributed": ""}))
    assert met == [("localhost:1", 2, 1), (None, None, None)]


@pytest.mark.parametrize("missing", ALL)
def test_all_three_options_are_needed(missing, met):
    given = {name: value for name, value in ALL.items() if name != missing}
    for options in (given, given | {"--distributed": ""}):
        with pytest.raises(InputError, match=f"^{missing} is missing: give --coordinator, --proc"):
            hosts.join(parse(options))
    assert met == []


@pytest.mark.parametrize("number", ["-1", "2"])
def test_a_number_out_of_range_is_refused(number, met):
    message = f"^--process is {number} of --processes 2: number them from 0 to 1$"
    with pytest.raises(InputError, match=message):
        hosts.join(parse(ALL | {"--process": number}))
    assert met == []


def test_those_that_do_not_meet_are_told_how(monkeypatch):
    def fail(*given):
        raise RuntimeError("no one came\nand a trace")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(InputError, match=r"did not connect \(no one came\): start all of them"):
        hosts.join(parse(ALL))


@pytest.mark.parametrize("error", [InputError("wrong"), KeyError("a mistake")])
def test_alone_what_is_raised_together_is_raised(error):
    with pytest.raises(type(error)) as caught, hosts.together():
        raise error
    assert caught.value is error


def test_alone_one_agrees_with_oneself():
    with hosts.together():
        pass
    hosts.wait_for_all()
    assert hosts.all_true(True) is True
    assert hosts.all_true(False) is False
    assert hosts.is_first() and not hosts.is_multiprocess()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_said_by_the_loop_and_not_amidst_whatever_it_interrupts(number, capsys):
    before = signal.getsignal(number)
    with hosts.stop_requests() as stop:
        assert not stop(1)
        os.kill(os.getpid(), number)
        assert capsys.readouterr().out == ""
        assert stop(2)
        assert capsys.readouterr().out == f"{number.name}: saving step 2, then stopping\n"
    assert signal.getsignal(number) == before


BUSY = """
import hashlib
from sisma_jax.devices import hosts

hosts.PATIENCE = hosts.GRACE = 0.1
with hosts.stop_requests():
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**30)  # like a compilation, one long call of C
"""


def test_a_signal_during_a_compilation_is_acknowledged_and_a_second_one_ends_the_process():
    with subprocess.Popen([sys.executable, "-c", BUSY], stdout=-1, stderr=-1, text=True) as busy:
        assert busy.stdout.readline() == "ready\n"
        busy.send_signal(signal.SIGINT)
        assert busy.stdout.readline().startswith("SIGINT: stopping after the step or compilation")
        busy.send_signal(signal.SIGINT)
        try:
            assert busy.wait(60) == 130
        finally:
            busy.kill()
        assert busy.stderr.read().endswith("interrupted\n")


def test_a_terminal_that_closes_says_so_twice_and_nohup_keeps_its_word():
    before = signal.getsignal(signal.SIGHUP)
    with hosts.stop_requests() as stop:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGHUP)
        assert stop(1)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with hosts.stop_requests() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop(1)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_where_nobody_listens_nothing_is_raised(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with io.TextIOWrapper(os.fdopen(writer, "wb")) as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        for _ in range(2):
            hosts.print_once("step 1")
