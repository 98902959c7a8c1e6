"""Several processes on CPUs, as `torchrun` and `accelerate launch` start them."""

from __future__ import annotations

import os

import torch
from accelerate.utils import get_int_from_env, parse_flag_from_env

#: Where launchers say the number of processes.
_COUNTS = ["WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"]

_USE_CPU = "ACCELERATE_USE_CPU"


def join_on_cpus() -> None:
    """Let accelerate see the processes of `torchrun` on a machine without GPUs.

    It takes each for the only one unless the environment tells it to use CPUs, as `accelerate launch --cpu` does.
    """
    if process_count() > 1 and not torch.cuda.is_available():
        os.environ.setdefault(_USE_CPU, "true")


def process_count() -> int:
    """The number of processes that were launched together; 1 without a launch."""
    return int(get_int_from_env(_COUNTS, 1))


def is_launched_alone() -> bool:
    """Whether `accelerate launch --cpu` was asked for several processes and started only this one.

    It says at which address several would meet, and starts them by mpirun, which says how many they are.
    """
    return bool(parse_flag_from_env(_USE_CPU) and "MASTER_PORT" in os.environ and process_count() == 1)
