"""CUDA kernels for arrays on a GPU, twins of :mod:`lev.cpu`: arrays in, arrays out, no checks."""
