"""Reading the harness's result files: runs, samples, axes, pairing of documents, breakdowns."""
