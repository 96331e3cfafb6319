"""The `infinitetalk` command: one file a subcommand, gathered in `main`."""
