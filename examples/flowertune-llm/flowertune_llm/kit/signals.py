# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""Ctrl-C and SIGTERM: the run ends at once, says what of it is safe, and leaves no process."""

import ctypes
import logging
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging import ERROR
from pathlib import Path
from types import FrameType
from typing import Any

from flwr.common import log

from .processes import command_of, kill_descendants

LOOK_SECONDS = 0.2
kept: list[Any] = []  # what C code refers to
safe: list[Callable[[], str]] = [lambda: "no round is saved yet"]  # the last one knows best


def end_on_signals(ended: Callable[[], int | None] = lambda: None) -> None:
    """Have SIGINT, SIGTERM and SIGHUP end this process and all that it has started.

    The main thread may be busy, and others set handlers there, too: what tells of a signal is the
    file descriptor that Python writes to as soon as one arrives.

    Args:
        ended: returns an exit status if the run is at an end without a signal; asked now and then.
    """
    if os.name == "nt":
        return
    receiver, sender = os.pipe()
    os.set_blocking(sender, False)
    endings = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}

    def install() -> None:
        for number in endings:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
                signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(sender, warn_on_full_buffer=False)

    def watch() -> None:
        while True:
            if select.select([receiver], [], [], LOOK_SECONDS)[0]:
                [number] = os.read(receiver, 1)
                status = 128 + number if number in endings else None
            else:
                status = ended()
            if status is not None:
                end(status)

    in_main_thread(install)
    threading.Thread(target=watch, daemon=True).start()


def end(status: int) -> None:
    """Say what is safe, kill all that this process has started, and end it."""
    why = "Interrupted" if status > 128 else "The simulation has ended with the error above"
    log(ERROR, "%s; %s", why, safe[-1]())
    logging.disable()  # what others say now is that they miss those killed
    kill_descendants()
    os._exit(status)


def in_main_thread(function: Callable[[], None]) -> None:
    """Call a function in the main thread, as soon as that runs Python code."""
    if threading.current_thread() is threading.main_thread():
        function()
        return
    callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(lambda _: function() or 0)
    kept.append(callback)
    ctypes.pythonapi.Py_AddPendingCall(callback, None)


@contextmanager
def simulation_watched() -> Iterator[None]:
    """Have signals end `flower-simulation`, whose ServerApp runs inside, in this thread.

    Flower 1.25 ends the simulation then, and waits for the ServerApp, which waits for replies that
    nobody sends; the same after an error in the simulation.
    """
    server, program = threading.current_thread(), Path(sys.argv[0]).stem
    if program != "flower-simulation" or server is threading.main_thread():
        yield
        return
    running, parent = [True], os.getppid()
    by_flwr_run = "flwr" in [Path(word).name for word in command_of(parent)[:2]]

    def ended() -> int | None:
        if by_flwr_run and os.getppid() != parent:
            return 128 + signal.SIGTERM
        main_loop = running and waiting_for(server)
        if main_loop:
            return 128 + signal.SIGINT if main_loop.f_locals.get("success", True) else 1
        return None

    end_on_signals(ended)
    try:
        yield
    finally:
        running.clear()


def waiting_for(thread: threading.Thread) -> FrameType | None:
    """Return the frame in which the main thread waits for the end of another."""
    frame = sys._current_frames().get(threading.main_thread().ident)
    while frame:
        if frame.f_code is threading.Thread.join.__code__ and frame.f_locals["self"] is thread:
            return frame.f_back
        frame = frame.f_back
    return None
