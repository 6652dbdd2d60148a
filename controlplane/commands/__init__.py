"""One file a command: `add_arguments(parser)`, `run(args) -> exit status`, and EXAMPLES for its help."""
