"""Ops: plain functions, each with a reference in plain PyTorch beside its fused implementations."""
