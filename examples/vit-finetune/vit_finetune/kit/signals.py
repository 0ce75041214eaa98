# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""Ctrl-C and SIGTERM: the run ends at once, logs the last safe round, and leaves no process."""

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
callbacks: list[Any] = []  # kept here because C code refers to them
safe: list[Callable[[], str]] = [lambda: "no round is saved yet"]  # the last one is asked


def end_on_signals(ended: Callable[[], int | None] = lambda: None) -> None:
    """Make SIGINT, SIGTERM and SIGHUP end this process and all that it has started.

    A thread reads the file descriptor that Python writes each signal to: the main thread may be
    busy, and other code sets handlers there, too.

    Args:
        ended: returns an exit status once the run has ended without a signal; called regularly.
    """
    if os.name == "nt":
        return
    receiver, sender = os.pipe()
    os.set_blocking(sender, False)
    endings = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}

    def install() -> None:
        for number in endings:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores it
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
    """Log what is safe, kill all that this process has started, and end it."""
    why = "Interrupted" if status > 128 else "The simulation has ended with the error above"
    log(ERROR, "%s; %s", why, safe[-1]())
    logging.disable()  # others would log that they miss the killed ones
    kill_descendants()
    os._exit(status)


def in_main_thread(function: Callable[[], None]) -> None:
    """Call a function in the main thread, as soon as that thread runs Python code."""
    if threading.current_thread() is threading.main_thread():
        function()
        return
    callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(lambda _: function() or 0)
    callbacks.append(callback)
    ctypes.pythonapi.Py_AddPendingCall(callback, None)


@contextmanager
def simulation_watched() -> Iterator[None]:
    """Make signals end `flower-simulation`, where the ServerApp runs in this thread.

    On a signal, or after an error in the simulation, Flower 1.25 ends the simulation and waits for
    the ServerApp; but that waits for replies, which do not come any more.
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
    """Return the main thread's frame that waits for the end of a thread; None if it does not."""
    frame = sys._current_frames().get(threading.main_thread().ident)
    while frame:
        if frame.f_code is threading.Thread.join.__code__ and frame.f_locals["self"] is thread:
            return frame.f_back
        frame = frame.f_back
    return None
