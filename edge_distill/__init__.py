"""The toolchain: the command line, and what ties export, runtime and benchmarks together."""
