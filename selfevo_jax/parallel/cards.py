"""NVIDIA cards by name, described so that XLA compiles for them where there is none.

Sources: NVIDIA's data sheets of the SXM cards (dense bfloat16 peak, memory, NVLink, which is given
there for both directions together) and the tables of compute capabilities in the CUDA C++
Programming Guide (what a multiprocessor holds).
"""

from __future__ import annotations

from dataclasses import dataclass

THREADS_OF_A_BLOCK, THREADS_OF_A_WARP = 1024, 32
REGISTERS = 65536
SHARED_BYTES_OF_A_BLOCK = 48 * 2**10  # without asking for more


@dataclass(frozen=True)
class Card:
    """One card. Bandwidths in bytes a second; `link_bandwidth` is NVLink's in one direction.

    `kind` is the name that the driver gives it; `memory_bytes` what CUDA reports, in whole GiB;
    `units` are the float32 units of a multiprocessor; `shared_bytes` is what it shares among its
    threads, of which one block may take all but 1 KiB.
    """

    kind: str
    capability: tuple[int, int]
    memory_bytes: int
    memory_bandwidth: float
    link_bandwidth: float
    peak_flops: float
    multiprocessors: int
    units: int
    clock_ghz: float
    shared_bytes: int
    cache_bytes: int


CARDS = {
    "a100": Card(
        "NVIDIA A100-SXM4-80GB", (8, 0), 79 * 2**30, 2.039e12, 300e9, 312e12,
        108, 64, 1.41, 164 * 2**10, 40 * 2**20,
    ),
    "h100": Card(
        "NVIDIA H100 80GB HBM3", (9, 0), 79 * 2**30, 3.352e12, 450e9, 989e12,
        132, 128, 1.98, 228 * 2**10, 50 * 2**20,
    ),
    "h200": Card(
        "NVIDIA H200", (9, 0), 139 * 2**30, 4.8e12, 450e9, 989e12,
        132, 128, 1.98, 228 * 2**10, 60 * 2**20,
    ),
}  # fmt: skip


def capability(kind: str) -> tuple[int, int] | None:
    """The compute capability of a card by the driver's name for it; None of one not listed."""
    return next((card.capability for card in CARDS.values() if card.kind == kind), None)


def target(card: Card) -> str:
    """The card as XLA's `GpuTargetConfigProto`, in text."""
    major, minor = card.capability
    return f"""
        gpu_device_info {{
            threads_per_block_limit: {THREADS_OF_A_BLOCK}
            threads_per_warp: {THREADS_OF_A_WARP}
            threads_per_core_limit: {2 * THREADS_OF_A_BLOCK}
            shared_memory_per_block: {SHARED_BYTES_OF_A_BLOCK}
            shared_memory_per_block_optin: {card.shared_bytes - 1024}
            shared_memory_per_core: {card.shared_bytes}
            registers_per_core_limit: {REGISTERS}
            registers_per_block_limit: {REGISTERS}
            core_count: {card.multiprocessors}
            fpus_per_core: {card.units}
            clock_rate_ghz: {card.clock_ghz}
            block_dim_limit_x: {2**31 - 1}
            block_dim_limit_y: {2**16 - 1}
            block_dim_limit_z: {2**16 - 1}
            memory_bandwidth: {int(card.memory_bandwidth)}
            device_memory_size: {card.memory_bytes}
            l2_cache_size: {card.cache_bytes}
            cuda_compute_capability {{ major: {major} minor: {minor} }}
        }}
        platform_name: "CUDA"
        dnn_version_info {{ major: 9 minor: 8 }}
        runtime_version {{ major: 12 minor: 8 }}
        device_description_str: "{card.kind}"
    """
