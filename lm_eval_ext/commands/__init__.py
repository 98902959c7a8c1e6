"""The subcommands of `lm-eval-ext`: each parses its options, calls the library and prints."""
