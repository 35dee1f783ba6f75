"""Complete programs on top of the package, each one file; `python -m examples.NAME --help`."""
