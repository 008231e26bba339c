"""One command line, `scalenet SUBCOMMAND`: a module a subcommand, run by `main`."""
