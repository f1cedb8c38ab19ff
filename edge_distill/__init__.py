"""The toolchain: the command line, the demonstration and what ties export, runtime and benchmarks together."""
