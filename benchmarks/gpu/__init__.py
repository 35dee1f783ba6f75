"""GPUs: the one command for a machine that has one, and what can be said of their kernels without one."""
