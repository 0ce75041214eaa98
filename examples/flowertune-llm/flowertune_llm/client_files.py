"""What a client keeps on its disk between the rounds of a run."""

import os
import shutil
from pathlib import Path

import safetensors.numpy

from flowertune_llm.kit.files import write_whole
from flowertune_llm.kit.replies import Arrays


def folder_of(client_dir: str, run: str, partition: int) -> Path:
    """Return where a client keeps its files of a run.

    Args:
        client_dir: the setting; empty for the user's cache folder.
        run: its name, as the server has it.
        partition: the client's.
    """
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    cache = Path(base, "flower-examples", "flowertune-llm", "clients")
    return Path(client_dir or cache).resolve() / Path(run).name / f"partition-{partition}"


def forget(folder: Path) -> None:
    """Delete all of it."""
    shutil.rmtree(folder, ignore_errors=True)


class LeftOut:
    """What rounding has left out of a client's changes so far.

    That of the last two rounds is kept: a round that was interrupted is trained once more.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def before(self, server_round: int) -> Arrays:
        """Return what was left out by the client's last round before this one."""
        found = [number for number in self.rounds() if number < server_round]
        return safetensors.numpy.load_file(self.path(max(found))) if found else {}

    def keep(self, server_round: int, arrays: Arrays) -> None:
        earlier = [number for number in self.rounds() if number < server_round]
        for number in set(self.rounds()) - {max(earlier, default=0)}:
            self.path(number).unlink()
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.path(server_round), safetensors.numpy.save(arrays))

    def rounds(self) -> list[int]:
        return [int(path.stem.rpartition("-")[2]) for path in self.folder.glob("left-out-*")]

    def path(self, server_round: int) -> Path:
        return self.folder / f"left-out-{server_round}.safetensors"
