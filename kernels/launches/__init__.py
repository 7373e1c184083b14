"""How the Triton kernels are launched: a table as data, and the opt-in autotuner."""
