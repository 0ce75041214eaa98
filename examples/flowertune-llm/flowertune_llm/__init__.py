"""Federated LoRA fine-tuning of large language models."""

import logging

# Retries against an unreachable Hub would bury the one line that says what to do, and bitsandbytes
# warns in each process of a kernel for CPUs that it would have fetched from there.
for noisy in ("huggingface_hub", "bitsandbytes.backends.cpu.ops"):
    logging.getLogger(noisy).setLevel(logging.ERROR)
