// Cholesky factor and inverse of many small matrices: gram (heads, d, d) -> lower L, L L^T = gram, and inverse L^-1.
// One block a head, in shared memory if the caller gives it (packed = 1), else in the result itself.  Eliminating
// column k turns the rows below it into those of the rest of L and, on its left, of L^-1.  A pivot that is not
// positive makes NaN of what follows.
extern "C" __global__ void __launch_bounds__(512)
    factor(const double* gram, double* lower, double* inverse, int d, int packed) {
  LEV_SHARED(double, shared);  // (d) the row v, then the packed lower triangle
  i64 own = (i64)blockIdx.x * d * d;
  double* v = shared;
  double* work = packed ? shared + d : inverse + own;
  auto at = [&](int i, int j) -> double& { return work[packed ? i * (i + 1) / 2 + j : i * d + j]; };
  for (int e = threadIdx.x; e < d * d; e += blockDim.x) {
    int i = e / d, j = e % d;
    lower[own + e] = 0;
    if (j <= i) at(i, j) = gram[own + e];
    else inverse[own + e] = 0;
  }
  __syncthreads();
  for (int k = 0; k < d; k++) {
    double pivot = sqrt(at(k, k)), turn = 1 / pivot;
    for (int j = threadIdx.x; j < d; j += blockDim.x) v[j] = j == k ? turn : (j < k ? at(k, j) : at(j, k)) * turn;
    __syncthreads();
    for (int j = threadIdx.x; j < d; j += blockDim.x) {
      if (j <= k) at(k, j) = v[j];
      if (j >= k) lower[own + (i64)j * d + k] = j == k ? pivot : v[j];
    }
    for (int i = k + 1 + threadIdx.x / 32; i < d; i += blockDim.x / 32)
      for (int j = threadIdx.x % 32; j <= i; j += 32) at(i, j) = (j == k ? 0 : at(i, j)) - v[i] * v[j];
    __syncthreads();
  }
  if (packed)
    for (int e = threadIdx.x; e < d * d; e += blockDim.x)
      if (e % d <= e / d) inverse[own + e] = at(e / d, e % d);
}
