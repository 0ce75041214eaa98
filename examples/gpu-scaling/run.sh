#!/usr/bin/env bash
# A SuperLink, NBCLIENTS SuperNodes and a run on this machine: ./run.sh --help
exec python -m gpu_scaling.launch "$@"
