"""How XLA compiles for the tests: in a quarter of the usual time, for programs that are slower and run for moments."""

# Without LLVM's passes: half of the time. A step is still rounded alike in dispatches of any length.
ALIKE = "--xla_backend_optimization_level=0"
# Without the emitters of fusions, too: half of the rest. There it may not be.
QUICK = f"{ALIKE} --xla_cpu_use_fusion_emitters=false"
