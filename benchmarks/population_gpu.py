"""gpu-scaling's rounds with 1,000 to 1,000,000 clients on one CUDA device, through its pool.

100 clients are drawn in each round, of the embedded digits: no Hub, no data. Seconds of the rounds,
and the most memory taken, of the machine and of the device. Writes results/population-gpu.json;
without a CUDA device it says so and ends well. `--on-cpu` runs the same, and writes nothing.
"""

import argparse

import torch
from common import SEED, in_words, measurement
from gpu_scaling_gpu import DeviceMemory
from population import DRAWN, SIZES, WORKERS, of_gpu_scaling

IMAGES = 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--on-cpu", action="store_true", help="try the script; writes nothing")
    on_cpu, small = parser.parse_args().on_cpu, not torch.cuda.is_available()
    if small and not on_cpu:
        print(f"skipped: no CUDA device for PyTorch {torch.__version__} here; --on-cpu to try")
        return
    given = {"executor": "pool", "examples_per_client": IMAGES, "batch_size": 8}
    with measurement("population-gpu", seeds=(SEED,), trial=small) as result:
        result |= {"drawn": DRAWN, "images": IMAGES, "workers": WORKERS, "runs": {}}
        for size in SIZES:
            with DeviceMemory() as memory:
                run = of_gpu_scaling("digits", WORKERS, population=size, **given)
            result["runs"][str(size)] = run | {"device_peak_bytes": memory.peak}
            print(in_words({"clients": size} | result["runs"][str(size)]), flush=True)


if __name__ == "__main__":
    main()
