"""The alignment methods, a module each."""
