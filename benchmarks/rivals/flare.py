"""The same federated training with NVIDIA FLARE's simulator: FedAvg, and the Client API.

Runs in an environment of its own, for its dependencies are not Flower's. Clients and server call
the example's own functions for data, training and testing, so that the framework is what differs.

    python flare.py FILE FOLDER

takes the file that `plain.py` takes, and prints the same lines; what the run writes goes to the
folder. Bytes are counted
where the server's process sends and receives frames, so with everything that FLARE says to itself.
"""

import json
import sys
from pathlib import Path

from flare_server import TimedFedAvg
from nvflare.job_config.api import FedJob
from nvflare.job_config.script_runner import ScriptRunner


def main() -> None:
    file, folder = sys.argv[1:]
    asked = json.loads(Path(file).read_text())
    clients, config = asked["clients"], asked["config"]
    job = FedJob(name="side-by-side", min_clients=clients)
    job.to_server(
        TimedFedAvg(
            num_clients=clients,
            num_rounds=config["num-server-rounds"],
            dataset=config["dataset"],
            network=config["network"],
            seed=config["seed"],
        )
    )
    script = Path(__file__).with_name("flare_client.py")
    job.to_clients(ScriptRunner(str(script), file))
    # A thread for each client keeps their processes; with fewer, each task starts one anew.
    status = job.simulator_run(folder, n_clients=clients, threads=clients)
    sys.exit(status)


if __name__ == "__main__":
    main()
