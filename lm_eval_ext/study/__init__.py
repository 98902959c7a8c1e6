"""A whole experiment from one file: stages with their inputs' hashes, run when these change, as subprocesses."""
