"""Engines that run a steered model behind the harness: what is independent of the engine, and one package per engine."""
