"""The subcommands. Each is a function of this package, imported when it is called."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

#: Subcommand: its function, or a group of them; what it does.
COMMANDS = {
    "extract": ("lm_eval_ext.commands.extract:extract", "Extract steering vectors from pairs of prompts into a file."),
    "sweep": (
        "lm_eval_ext.commands.sweep:sweep",
        "Evaluate a grid of layers and strengths for little more than one evaluation.",
    ),
    "tune": (
        "lm_eval_ext.commands.tune:tune",
        "Choose vectors, layers and strengths on a development split, confirm them on the test split.",
    ),
    "gap": ("lm_eval_ext.commands.gap:gap", "Find where naming the country leaves room for steering."),
    "geometry": ("lm_eval_ext.commands.geometry:geometry", "Measure how languages lie in a model, layer by layer."),
    "plane": ("lm_eval_ext.commands.plane:plane", "Draw the transfer-localization plane from result files."),
    "breakdown": (
        "lm_eval_ext.commands.breakdown:breakdown",
        "Break a score down by subject, category, topic or language.",
    ),
    "axes": ("lm_eval_ext.commands.axes:axes", "List which axis tasks of the harness are, and in which language."),
    "report": ("lm_eval_ext.commands.report:report", "Report what results show, and what not, as one page."),
    "study": (
        "lm_eval_ext.commands.study:study",
        "Run a whole experiment from one file: train, steer, evaluate, draw.",
    ),
    "leaderboard": ("lm_eval_ext.commands.leaderboard:leaderboard", "Make a static leaderboard of result trees."),
    "data": ("lm_eval_ext.commands.data:app", "Check, count, show, export and import data sets."),
    "train": ("lm_eval_ext.commands.train:app", "Train aligned models: MIST, MIDALIGN, CLO."),
    "side-effects": (
        "lm_eval_ext.commands.side_effects:side_effects",
        "Measure what steering or training changes besides its aim.",
    ),
    "gate": ("lm_eval_ext.commands.gate:gate", "Pass or fail a candidate against a baseline, item by item."),
    "init": ("lm_eval_ext.commands.init:init", "Write a project for a team: questions, gate, study, workflow."),
    "bundle": ("lm_eval_ext.commands.bundle:bundle", "Bundle a run into one file that others can check and rerun."),
    "verify": ("lm_eval_ext.commands.bundle:verify", "Check that a bundle holds what its manifest says."),
    "rerun": ("lm_eval_ext.commands.bundle:rerun", "Print or run the command that makes a bundle's run again."),
    "demo": ("lm_eval_ext.commands.demo:demo", "Measure and steer the embedded model, from extraction to the plane."),
    "model": ("lm_eval_ext.commands.model:model", "Prepare the embedded model and print where it is."),
    "doctor": (
        "lm_eval_ext.commands.doctor:doctor",
        "Check the installation and say what to do about what is missing.",
    ),
}


def subcommand(name: str) -> Any:
    """The click command, or group of commands, behind the name of a subcommand."""
    target, _ = COMMANDS[name]
    return typer.main.get_command(_single(name, _function(target)))


def _function(target: str) -> Callable[..., None] | typer.Typer:
    module, _, name = target.partition(":")
    function: Callable[..., None] | typer.Typer = getattr(importlib.import_module(module), name)
    return function


def _single(name: str, function: Callable[..., None] | typer.Typer) -> typer.Typer:
    if isinstance(function, typer.Typer):
        return function
    single = typer.Typer(add_completion=False)
    single.command(name)(function)
    return single
