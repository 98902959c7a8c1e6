"""Reading the harness's result files: runs, samples, axes, pairing of documents, breakdowns.

runs = results.load("results")     # every run below a folder; samples are read when they are needed
runs.table()                       # runs and their tasks
runs.samples(metrics=["acc"])      # the score of every document
"""

from lm_eval_ext.results.runs import Runs, load

__all__ = ["Runs", "load"]
