# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""What an app says of itself: its settings, and how it wants to be examined.

In its pyproject.toml, all of it optional:

    [tool.exam]
    nodes = 4                               # clients
    centralised = "package.module:function" # gets the run config; returns the model after a round
    keys.resume = "resume-from"             # its names for: rounds, seed, resume, replies
    negative = ["offset"]                   # keys that may be below 0
    centralised.function, centralised.settings  # the same, with settings of that question only

    [tool.exam.settings]                    # over those of offline.toml
    fraction-train = 1.0
"""

import re
import tomllib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from flwr.common.config import flatten_dict

# The names that a key may have, for each thing that the exam sets.
KEYS = {
    "rounds": r"(.*\.)?(num-)?(server-)?rounds",
    "seed": r"(.*\.)?seed",
    "resume": r"(.*\.)?resume(-from)?",
    "replies": r"(.*\.)?min-replies",
}
ROUNDS = 2


class NoApp(ValueError):
    """A folder that holds no Flower app; the text says what is missing."""


@dataclass
class App:
    """An app and its settings for the exam.

    Args:
        folder: that holds its pyproject.toml.
        given: settings, over all others.
        nodes: number of clients; 0: as the app says, or 4.

    Raises:
        NoApp: it holds none.
    """

    folder: Path
    given: dict[str, Any] = field(default_factory=dict)
    nodes: int = 0

    def __post_init__(self) -> None:
        self.folder = self.folder.resolve()
        path = self.folder / "pyproject.toml"
        if not path.is_file():
            raise NoApp(f"{self.folder} holds no pyproject.toml; name the app's folder")
        tool = tomllib.loads(path.read_text("utf-8")).get("tool", {})
        if "components" not in tool.get("flwr", {}).get("app", {}):
            raise NoApp(f"{path} has no [tool.flwr.app.components]: no Flower app")
        self.declared: dict[str, Any] = tool["flwr"]
        self.exam: dict[str, Any] = tool.get("exam", {})
        self.nodes = self.nodes or self.exam.get("nodes", 4)

    @property
    def components(self) -> list[str]:
        """The ServerApp and the ClientApp, as "package.module:name"."""
        return list(self.declared["app"]["components"].values())

    @property
    def package(self) -> str:
        """The package of the ServerApp."""
        return self.declared["app"]["components"]["serverapp"].split(":")[0].split(".")[0]

    @cached_property
    def defaults(self) -> dict[str, Any]:
        """The run config of pyproject.toml, flat."""
        return flatten_dict(self.declared["app"].get("config", {}))

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What the exam sets: of offline.toml, of [tool.exam.settings], and few rounds."""
        path = self.folder / "offline.toml"
        offline = tomllib.loads(path.read_text("utf-8")) if path.is_file() else {}
        settings = flatten_dict(offline) | flatten_dict(self.exam.get("settings", {}))
        if rounds := self.key("rounds"):
            settings[rounds] = ROUNDS
        return settings | self.given

    @property
    def config(self) -> dict[str, Any]:
        """The run config of the exam."""
        return self.defaults | self.settings

    @property
    def rounds(self) -> int:
        """How many a run of the exam has; 0: the app does not let it be set."""
        return int(self.config[key]) if (key := self.key("rounds")) else 0

    @property
    def one_round(self) -> dict[str, Any]:
        """The settings of the shortest run."""
        return {key: 1} if (key := self.key("rounds")) else {}

    @property
    def one_client(self) -> dict[str, Any]:
        """The settings of a single client's run."""
        return self.one_round | ({key: 1} if (key := self.key("replies")) else {})

    def key(self, what: str) -> str:
        """Return the app's name for "rounds", "seed", "resume" or "replies"; empty: none."""
        own = self.exam.get("keys", {}).get(what)
        named = (key for key in self.defaults if re.fullmatch(KEYS[what], key.replace("_", "-")))
        return own or next(named, "")
