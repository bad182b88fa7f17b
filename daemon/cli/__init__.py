"""The command line: a client of the daemon's HTTP API, plus `serve`, `convert` and `discover`."""
