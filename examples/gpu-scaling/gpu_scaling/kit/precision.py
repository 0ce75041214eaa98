# Part of the kit: the same in every example, word for word. You need not read it to change one.
"""Precision: the dtype that a device computes fast in."""

import torch


def fast_dtype(device: str) -> str:
    """Return "bfloat16" if a device ("cuda", "cpu", …) is faster in it, else "float32"."""
    if device.startswith("cuda"):
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # Older releases of PyTorch do not tell; float32 is right everywhere. What the processor
        # can do, PyTorch may be told not to use.
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()
        fast = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
        fast = fast and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return "bfloat16" if fast else "float32"
