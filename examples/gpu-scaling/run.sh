#!/usr/bin/env bash
# A SuperLink, NBCLIENTS SuperNodes and a run on this machine: ./run.sh --help
folder="$(cd "$(dirname "$0")" && pwd)"
PYTHONPATH="$folder${PYTHONPATH:+:$PYTHONPATH}" exec python -m gpu_scaling.supernodes.launch "$@"
