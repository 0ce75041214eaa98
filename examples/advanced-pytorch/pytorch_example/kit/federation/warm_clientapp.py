# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""Run a SuperNode whose ClientApps do not import PyTorch and the like for each message.

Flower starts the program `flwr-clientapp` for each message, which imports everything anew: seconds
of a round. Here the SuperNode finds another program of that name, which has a server fork Flower's
own; that server has imported everything already. Each message still has a process and its memory
to itself. The arguments are the command of the SuperNode, with any options:

    python …/warm_clientapp.py --preload torch,datasets flower-supernode --superlink …
"""

import argparse
import gc
import json
import os
import select
import shlex
import shutil
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import chdir, suppress
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

PROGRAM = "flwr-clientapp"
SOCKET = "socket"  # relative: the folder's whole path may be too long for a socket
ASK = "--ask"
SHELL = '#!/bin/sh\nexec {python} -I -S {script} {ask} {folder} "$@"\n'


def main() -> None:
    if sys.argv[1:2] == [ASK]:
        ask(Path(sys.argv[2]), sys.argv[3:])
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preload", default="", help="modules to import, once: torch,datasets")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="of the SuperNode")
    given = parser.parse_args()
    if not given.command:
        parser.error("the command of the SuperNode is missing: flower-supernode …")
    folder = Path(tempfile.mkdtemp(prefix="clientapps-"))
    words = {"python": sys.executable, "script": __file__, "ask": ASK, "folder": folder}
    quoted = {name: shlex.quote(str(word)) for name, word in words.items()}
    (folder / PROGRAM).write_text(SHELL.format(**quoted))
    (folder / PROGRAM).chmod(0o700)
    listener = socket.socket(socket.AF_UNIX)
    with chdir(folder):
        listener.bind(SOCKET)
    listener.listen(128)
    supernode_ends, supernode_lives = os.pipe()  # closed when the SuperNode ends
    if os.fork() == 0:
        os.close(supernode_lives)
        serve(listener, supernode_ends, given.preload.split(","), folder)
    os.set_inheritable(supernode_lives, True)
    os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"
    os.execvp(given.command[0], given.command)


def serve(listener: socket.socket, supernode_ends: int, preload: list[str], folder: Path) -> None:
    """Fork a ClientApp for each connection, until the SuperNode ends."""
    server = os.getpid()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # leaves no zombies
    try:
        [program] = entry_points(group="console_scripts", name=PROGRAM)
        run = program.load()
        for module in filter(None, preload):
            with suppress(ImportError):
                import_module(module)
        while supernode_ends not in select.select([listener, supernode_ends], [], [])[0]:
            connection, _ = listener.accept()
            words = json.loads(connection.makefile().readline())
            if os.fork() == 0:
                listener.close()
                connection.close()
                os.close(supernode_ends)
                become(run, words)
            connection.sendall(b"\n")
            connection.close()
    except (KeyboardInterrupt, SystemExit):
        pass
    finally:
        if os.getpid() == server:
            shutil.rmtree(folder, ignore_errors=True)
            os._exit(0)


def become(run: Callable[[], None], words: list[str]) -> None:
    """Run Flower's program in this process, and end it."""
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    sys.argv = [PROGRAM, *words]
    gc.freeze()  # a collection need not look through all that was imported before
    status: object = 1
    try:
        status = run() or 0
    except SystemExit as ended:
        status = ended.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else 1)


def ask(folder: Path, words: list[str]) -> None:
    """Ask for a fork; where nobody answers, become Flower's own program."""
    with suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        with chdir(folder):
            connection.connect(SOCKET)
        connection.sendall(json.dumps(words).encode() + b"\n")
        if connection.recv(1):
            os._exit(0)
    os.environ["PATH"] = os.environ["PATH"].replace(f"{folder}{os.pathsep}", "")
    os.execvp(PROGRAM, [PROGRAM, *words])


if __name__ == "__main__":
    main()
