"""Results that travel: one file with a run, what it was made with, and a hash over all of it.

`write` makes it, `verify` checks it, `rerun` says (or runs) the command that makes such a run again.
"""
