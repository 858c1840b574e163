"""Numba and BLAS kernels for NumPy arrays: arrays in, arrays out, no checks."""
