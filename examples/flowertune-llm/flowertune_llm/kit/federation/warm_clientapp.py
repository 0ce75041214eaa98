# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""Run a SuperNode's ClientApps from a process that has imported PyTorch and the like before.

Flower starts a process for each message, which imports everything anew: seconds of a round. Here
each is forked from one that has done so, and still has a process and its memory to itself:

    flower-supernode … --isolation process --clientappio-api-address 127.0.0.1:9094
    python …/warm_clientapp.py --clientappio-api-address 127.0.0.1:9094 --preload torch

Built on what `flower-superexec` of the pinned Flower release is made of.
"""

import argparse
import multiprocessing
import os
import tempfile

from flwr.proto.clientappio_pb2_grpc import ClientAppIoStub
from flwr.supercore.superexec.plugin import ClientAppExecPlugin
from flwr.supercore.superexec.run_superexec import run_superexec
from flwr.supernode.runtime.run_clientapp import run_clientapp

LONGEST_FOLDER = 60  # for the socket through which forks are asked for
FORKS = multiprocessing.get_context("forkserver")


class WarmClientApp(ClientAppExecPlugin):
    """Forks a process for each message, where Flower's own plugin starts a program."""

    def launch_app(self, token: str, run_id: int) -> None:
        address, parent = self.appio_api_address, os.getpid()
        arguments = (address, token, self.flwr_dir, None, parent)
        FORKS.Process(target=run_clientapp, args=arguments).start()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clientappio-api-address", required=True, help="of the SuperNode")
    parser.add_argument("--preload", nargs="*", default=[], help="modules to import, once")
    arguments = parser.parse_args()
    if len(os.fsencode(tempfile.gettempdir())) > LONGEST_FOLDER:
        tempfile.tempdir = "/tmp"
    FORKS.set_forkserver_preload(["flwr.clientapp", *arguments.preload])
    run_superexec(
        plugin_class=WarmClientApp,
        stub_class=ClientAppIoStub,
        appio_api_address=arguments.clientappio_api_address,
    )


if __name__ == "__main__":
    main()
