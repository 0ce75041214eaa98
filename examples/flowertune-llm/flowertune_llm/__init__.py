"""Federated LoRA fine-tuning of large language models."""

import logging

# Logs of retries would bury the line that says what to do about an unreachable Hub. bitsandbytes
# warns in each process of a kernel for CPUs that it cannot fetch from there.
for noisy in ("huggingface_hub", "bitsandbytes.backends.cpu.ops"):
    logging.getLogger(noisy).setLevel(logging.ERROR)
