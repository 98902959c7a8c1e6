"""What is independent of the engine: a second engine is a package and a line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
import torch
from lm_eval.api.model import TemplateLM
from support import tiny
from support.scores import PAIRS, ask, assert_same

from lm_eval_ext import backends, harness
from lm_eval_ext.backends.base import SteeredBackend
from lm_eval_ext.backends.hf.model import SteeredHFLM
from lm_eval_ext.errors import LanguageError, ModelError, PlanError, UserError, VectorFileError
from lm_eval_ext.scoring.requests import Request, Score
from lm_eval_ext.steering.decoder import decoder_layers, with_residual
from lm_eval_ext.steering.table import Addition

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lm_eval.api.instance import Instance

pytestmark = pytest.mark.transformers4

PACKAGE = Path(backends.__file__).parents[1]


class Engine(TemplateLM):
    """The harness's class of an engine that knows nothing of torch modules or of us."""

    enable_thinking = False
    add_bos_token = None
    max_length = tiny.CONTEXT

    def __init__(self, pretrained: str, colour: str = "blue") -> None:
        self.model, self.tokenizer = tiny.load("llama"), tiny.load_tokenizer("llama")
        self.colour = colour
        self.cache_hook = mock.Mock()

    @property
    def prefix_token_id(self) -> int:
        return int(self.tokenizer.bos_token_id)

    def set_cache_hook(self, cache_hook: Any) -> None:
        self.cache_hook = cache_hook


class SteeredEngine(SteeredBackend, Engine):
    """Scores one request at a time, its additions put in by hand."""

    rank = 0
    eot_token_id = 0

    def tok_encode(self, string: str, **_: Any) -> list[int]:
        raise AssertionError("texts are tokenised together")

    def _loglikelihood_tokens(self, requests: Any, **_: Any) -> Any:
        raise AssertionError("requests go to `score`")

    def score(
        self, requests: Sequence[Request], progress: Callable[[dict[Request, Score]], object] = lambda done: None
    ) -> list[Score]:
        scores = [self._one(request) for request in requests]
        progress(dict(zip(requests, scores, strict=True)))
        return scores

    @torch.inference_mode()
    def _one(self, request: Request) -> Score:
        hooks = []
        for layer, (step,) in self._table.steps.items():
            assert isinstance(step, Addition)
            addition = step.matrix[request.row]
            hooks.append(
                decoder_layers(self.model)[layer].register_forward_hook(
                    lambda _, __, output, addition=addition: with_residual(
                        output, (output if isinstance(output, torch.Tensor) else output[0]) + addition
                    )
                )
            )
        ids = torch.tensor([[*request.prompt, *request.continuation]])
        logits = self.model(ids, use_cache=False).logits[0, len(request.prompt) - 1 : -1].log_softmax(-1)
        for hook in hooks:
            hook.remove()
        wanted = torch.tensor(request.continuation)
        best = bool((logits.argmax(-1) == wanted).all())
        return Score(float(logits.gather(1, wanted[:, None]).sum()), best)

    def generate(self, requests: list[Instance], rows: Sequence[int], disable_tqdm: bool) -> list[str]:
        return [f"{request.args[0]}/{row}" for request, row in zip(requests, rows, strict=True)]


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(harness.MODELS, "steered-other", f"{__name__}:SteeredEngine")


def other(steer: str = "", **arguments: Any) -> SteeredBackend:
    return backends.load(
        "steered-other", str(tiny.folder("llama")), vectors=str(tiny.vector_file("llama")), steer=steer, **arguments
    )


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("steer", ["", "en@1:2/all+loc@2:3/all"])
def test_another_engine_gives_the_same_answers(steer: str) -> None:
    pairs = [*PAIRS["letters"], *PAIRS["unconditional"], *PAIRS["spaces"]]
    languages = [tiny.LANGUAGES[i % 4] for i in range(len(pairs))]
    engine, hf = other(steer), tiny.steered("llama", steer)
    assert_same(ask(engine, pairs, languages), ask(hf, pairs, languages))
    texts = [(text,) for text in tiny.TEXTS.values()]
    rolling = tiny.requests("loglikelihood_rolling", texts, list(tiny.LANGUAGES))
    found, expected = engine.loglikelihood_rolling(rolling), hf.loglikelihood_rolling(rolling)
    assert_same(tiny.rolling(found), tiny.rolling(expected))
    generation: list[tuple[Any, ...]] = [("Which", {}), ("bird", {})]
    rows = [0, 0] if not steer else [hf._table.row("ko"), hf._table.row("zh")]
    asked = tiny.requests("generate_until", generation, ["ko", "zh"])
    assert engine.generate_until(asked) == [f"Which/{rows[0]}", f"bird/{rows[1]}"]
    assert engine.get_model_info()["steering"] == hf.steering_identity()


@pytest.mark.usefixtures("registered")
def test_what_is_wrong_is_found_before_another_engine_starts() -> None:
    wrong: list[tuple[dict[str, Any], type[UserError]]] = [
        ({"steer": "en@"}, PlanError),
        ({"steer": "en@99:1"}, PlanError),
        ({"steer": "formal@1"}, VectorFileError),
        ({"vectors": tiny.vector_set("mistral")}, VectorFileError),
        ({"vectors": None, "steer": "en@1"}, PlanError),
        ({"positions": "first"}, PlanError),
        ({"pretrained": "/nowhere"}, ModelError),
    ]
    given = {"pretrained": str(tiny.folder("llama")), "vectors": tiny.vector_set("llama")}
    with mock.patch.object(Engine, "__init__", side_effect=SystemExit("loaded")):
        for arguments, error in wrong:
            with pytest.raises(error):
                backends.load("steered-other", **given | arguments)


@pytest.mark.usefixtures("registered")
def test_arguments_of_another_engine() -> None:
    assert other(colour="red").colour == "red"
    with pytest.raises(
        ModelError, match=r"unexpected keyword argument 'color'[\s\S]*allow_same_split everything goes to"
    ):
        other(color="red")
    with pytest.raises(LanguageError, match="task tiny: the language is not known"):
        other("loc@1/all").loglikelihood(tiny.requests("loglikelihood", [("Which bird", " rice")]))


def test_the_factory() -> None:
    assert isinstance(backends.load("steered-hf", str(tiny.folder("llama")), device="cpu"), SteeredHFLM)
    with pytest.raises(ModelError, match="the model type 'hf' is unknown, valid: steered-hf"):
        backends.load("hf")


def test_only_the_hf_package_knows_the_harness_s_hf() -> None:
    knowing = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if "HFLM" in path.read_text(encoding="utf-8") and path.name != "harness.py"
    }
    assert knowing == {"backends/hf/model.py", "backends/base.py"}  # an example in a docstring
    code = "import sys, lm_eval_ext.backends.base; print('lm_eval.models.huggingface' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_importing_the_package_is_cheap() -> None:
    code = "import sys, lm_eval_ext.backends; print({'torch', 'transformers', 'lm_eval'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
