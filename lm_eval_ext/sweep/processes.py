"""The processes of `torchrun` or `accelerate launch`, each of which computes its share of a sweep."""

from __future__ import annotations


class Processes:
    """This process among those that were launched; the only one without a launch."""

    def __init__(self) -> None:
        from accelerate import PartialState
        from accelerate.utils import parse_flag_from_env

        from lm_eval_ext.models import launch

        launch.join_on_cpus()
        self._state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))  # as Accelerator reads it
        self.rank: int = self._state.process_index
        self.count: int = self._state.num_processes
        self.is_first = self.rank == 0

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        if self.count > 1:
            self._state.destroy_process_group()

    def wait(self) -> None:
        """Wait until all processes have called this."""
        self._state.wait_for_everyone()
