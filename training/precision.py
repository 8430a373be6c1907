"""Precision of the forward pass."""

from typing import Literal

import torch

Precision = Literal["auto", "fp32", "bf16"]
"""auto uses bf16 where the hardware has instructions for it."""


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """Return the autocast context of a forward pass; weights stay in fp32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=_use_bf16(precision, device))


def _use_bf16(precision: Precision, device: torch.device) -> bool:
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    found = torch.cpu.get_capabilities()  # Without bf16 instructions, autocast only slows down.
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
