"""How XLA compiles for the tests: in about half the usual time, for programs that are slower and run for moments."""

QUICK = "--xla_backend_optimization_level=0"
