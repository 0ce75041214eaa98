"""Progress of a long aggregation: a bar on a terminal, a line for each tenth elsewhere."""

import sys
import time
from logging import INFO
from typing import Self

from flwr.common import log
from tqdm import tqdm


class Progress:
    """A count of bytes.

    Args:
        total: of the whole model, from all clients.
        done: bytes that were aggregated before an interruption.
    """

    def __init__(self, total: int, done: int) -> None:
        self.total, self.done, self.fetched = total, done, 0
        self.tenth = 10 * done // max(total, 1)
        self.began = time.monotonic()
        hidden = not sys.stderr.isatty()
        self.bar = tqdm(total=total, initial=done, unit="B", unit_scale=True, disable=hidden)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def add(self, nbytes: int) -> None:
        self.done, self.fetched = self.done + nbytes, self.fetched + nbytes
        self.bar.update(nbytes)
        if self.bar.disable and 10 * self.done // self.total > self.tenth:
            self.tenth = 10 * self.done // self.total
            log(INFO, "Aggregated %d %%: %s", 10 * self.tenth, self)

    def __str__(self) -> str:
        seconds = time.monotonic() - self.began
        rate = self.fetched / 1e6 / max(seconds, 1e-9)
        return f"{self.done / 1e9:.2f} of {self.total / 1e9:.2f} GB, {rate:.0f} MB/s"
