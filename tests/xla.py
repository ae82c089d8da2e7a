"""How XLA compiles for the tests: in a quarter of the usual time, for programs that are slower and run for moments."""

# Without LLVM's passes, and without the emitters of fusions, which take half of the remaining time.
QUICK = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
