"""How XLA compiles for the tests: in a quarter of the usual time, for programs that are slower and run for moments."""

# Without LLVM's passes, and without the way through MLIR that a CPU's fusions take since 2025.
QUICK = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
