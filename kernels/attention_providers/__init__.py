"""Who computes attention over packed sequences: one library, or our kernels, a file; :mod:`.choice` picks one."""
