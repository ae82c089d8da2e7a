"""How XLA compiles for the tests: in a quarter of the usual time, for programs that are slower and run for moments."""

# Without LLVM's passes. A step is rounded alike in a dispatch of any length.
ALIKE = "--xla_backend_optimization_level=0"
# Also without the emitters of fusions, which take half of the remaining time; not so here.
QUICK = f"{ALIKE} --xla_cpu_use_fusion_emitters=false"
