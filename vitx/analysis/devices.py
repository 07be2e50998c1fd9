"""Peak operations per second of accelerators, as published by their makers."""

import re

# Dense bfloat16 operations per second (float16 where a chip has no bfloat16) of what JAX calls one device: of TPU v2,
# v3 and v7 that is one core of two on a chip. First match of the lower-case device_kind counts.
# TPUs: cloud.google.com/tpu/docs, "System architecture", a page for each version: v2 45, v3 123, v4 275, v5e 197,
# v5p 459, v6e 918, Ironwood 2307 TFLOP/s a chip. NVIDIA: data sheets of V100, T4, A100, L4, L40S, H100, H200, B200;
# where they print numbers with sparsity, half of those.
PEAKS = (
    (r"tpu v2", 22.5e12),
    (r"tpu v3", 61.5e12),
    (r"tpu v4$", 275e12),
    (r"tpu v5( ?lite|e)", 197e12),
    (r"tpu v5", 459e12),
    (r"tpu v6", 918e12),
    (r"tpu ?v?7", 1153.5e12),
    (r".*\bv100", 125e12),
    (r".*\bt4\b", 65e12),
    (r".*\ba100", 312e12),
    (r".*\bl4\b", 121e12),
    (r".*\bl40s", 362e12),
    (r".*\bh100 pcie", 756e12),
    (r".*\b(h100|h200|gh200)", 989e12),
    (r".*\bb200", 2250e12),
)


def peak_flops(device_kind: str) -> float | None:
    """Returns the dense bfloat16 operations per second of one JAX device, or None for an unknown one.

    Args:
        device_kind: `device_kind` of the JAX device.
    """
    return next((peak for pattern, peak in PEAKS if re.match(pattern, device_kind.lower())), None)
