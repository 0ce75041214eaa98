"""Files of a client between the rounds of a run."""

import os
import shutil
from pathlib import Path

import safetensors.numpy

from flowertune_llm.kit.files import write_whole
from flowertune_llm.kit.replies import Arrays


def folder_of(client_dir: str, run: str, partition: int) -> Path:
    """Return the folder of a client's files of a run.

    Args:
        client_dir: the setting; empty for the user's cache folder.
        run: name of the run.
        partition: the client's.
    """
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    cache = Path(base, "flower-examples", "flowertune-llm", "clients")
    return Path(client_dir or cache).resolve() / Path(run).name / f"partition-{partition}"


def forget(folder: Path) -> None:
    """Delete the folder."""
    shutil.rmtree(folder, ignore_errors=True)


class LeftOut:
    """The part of a client's changes that rounding has left out so far.

    It is kept for the last two rounds: an interrupted round is trained again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def before(self, server_round: int) -> Arrays:
        """Return the part left out up to the client's last round before this one."""
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
