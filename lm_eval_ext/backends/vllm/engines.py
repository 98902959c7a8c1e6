"""The vLLM engines that answer requests: one in this process's charge, or replicas over Ray."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from more_itertools import distribute

from lm_eval_ext.errors import ModelError
from lm_eval_ext.fingerprints import hash_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lm_eval_ext.backends.vllm.request_args import Scored

#: The class of workers, as vLLM imports it.
WORKER = "lm_eval_ext.backends.vllm.worker.Worker"


class Engine(Protocol):
    """What answers requests."""

    def steer(self, table: bytes) -> None:
        """Put a steering table in place in every worker.

        Raises:
            ModelError: the model's layers cannot be found.
        """

    def generate(self, prompts: Sequence[Any], params: Sequence[Any], lora: Any, *, progress: bool) -> list[Any]:
        """vLLM's outputs, in order."""

    def take_scores(self) -> dict[int, list[Scored]]:
        """What was scored since the last call, by the numbers of the requests."""

    def fingerprint(self) -> str:
        """A hash of the weights of all workers."""

    def close(self) -> None:
        """End the engine."""


class LocalEngine:
    """An engine of vLLM with all its workers, on one machine or several.

    Args:
        llm: of vLLM.
    """

    def __init__(self, llm: Any) -> None:
        self._llm = llm

    def steer(self, table: bytes) -> None:
        """See `Engine.steer`."""
        for problem in self._llm.collective_rpc("lm_eval_ext_steer", args=(table,)):
            if problem:
                raise ModelError(problem)

    def generate(self, prompts: Sequence[Any], params: Sequence[Any], lora: Any, *, progress: bool) -> list[Any]:
        """See `Engine.generate`."""
        return list(self._llm.generate(list(prompts), list(params), use_tqdm=progress, lora_request=lora))

    def take_scores(self) -> dict[int, list[Scored]]:
        """See `Engine.take_scores`."""
        scores: dict[int, list[Scored]] = {}
        for of_worker in self._llm.collective_rpc("lm_eval_ext_take_scores"):
            for number, scored in of_worker.items():
                scores.setdefault(int(number), []).extend(scored)
        return scores

    def fingerprint(self) -> str:
        """See `Engine.fingerprint`."""
        return hash_text(*self._llm.collective_rpc("lm_eval_ext_fingerprint"))[:16]

    def close(self) -> None:
        """See `Engine.close`."""
        with suppress(AttributeError):  # another release
            self._llm.llm_engine.engine_core.shutdown()


class Replicas:
    """Replicas of an engine over Ray, each with a share of the requests.

    The harness starts its replicas anew for every batch; these stay.

    Args:
        arguments: of vLLM's `LLM`.
        count: of replicas.
        gpus: of each; 0 on CPUs.
    """

    def __init__(self, arguments: dict[str, Any], count: int, gpus: int) -> None:
        import ray

        self._ray = ray
        # A replica must not use Ray itself: nested placement groups block each other.
        own = {key: value for key, value in arguments.items() if key != "distributed_executor_backend"}
        actor = ray.remote(num_gpus=gpus)(_Replica)
        self._replicas = [actor.remote(own) for _ in range(count)]

    def steer(self, table: bytes) -> None:
        """See `Engine.steer`."""
        for problem in self._ray.get([replica.steer.remote(table) for replica in self._replicas]):
            if problem:
                raise ModelError(problem)

    def generate(self, prompts: Sequence[Any], params: Sequence[Any], lora: Any, *, progress: bool) -> list[Any]:
        """See `Engine.generate`."""
        n = len(self._replicas)
        shares = zip(self._replicas, distribute(n, prompts), distribute(n, params), strict=True)
        running = [replica.generate.remote(list(own), list(given), lora) for replica, own, given in shares]
        outputs: list[Any] = [None] * len(prompts)
        for number, of_replica in enumerate(self._ray.get(running)):
            outputs[number::n] = of_replica
        return outputs

    def take_scores(self) -> dict[int, list[Scored]]:
        """See `Engine.take_scores`."""
        scores: dict[int, list[Scored]] = {}
        for of_replica in self._ray.get([replica.take_scores.remote() for replica in self._replicas]):
            scores.update(of_replica)
        return scores

    def fingerprint(self) -> str:
        """See `Engine.fingerprint`; the replicas hold the same weights."""
        fingerprint: str = self._ray.get(self._replicas[0].fingerprint.remote())
        return fingerprint

    def close(self) -> None:
        """See `Engine.close`."""
        for replica in self._replicas:
            self._ray.kill(replica)


class _Replica:
    """A `LocalEngine` in an actor of Ray."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        from vllm import LLM

        for name in [name for name in os.environ if name.startswith("VLLM_DP_")]:  # of the driver
            del os.environ[name]
        self._engine = LocalEngine(LLM(**arguments))

    def steer(self, table: bytes) -> str:
        try:
            self._engine.steer(table)
        except ModelError as error:
            return str(error)
        return ""

    def generate(self, prompts: list[Any], params: list[Any], lora: Any) -> list[Any]:
        return self._engine.generate(prompts, params, lora, progress=False)

    def take_scores(self) -> dict[int, list[Scored]]:
        return self._engine.take_scores()

    def fingerprint(self) -> str:
        return self._engine.fingerprint()
