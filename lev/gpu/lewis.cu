// Online Lewis weights for p != 2: what rows are against the form of those before, and the weights that follow.

// odds (heads, n) = |X k|^2 of rows (heads, n, d), X (heads, d, d) lower triangular, all in float64; at least 2^-1000
// of a row that is not zeros.  Grid (tiles of 64 rows, heads), 256 threads.
template <class T>
__device__ void odds_wide(const T* keys, const double* probe, double* odds, int n, int d) {
  LEV_SHARED(double, tiles);  // (2, 16, 65): columns of the rows, and of X
  int ty = threadIdx.x / 16, tx = threadIdx.x % 16, head = blockIdx.y, start = blockIdx.x * 64;
  keys += (i64)head * n * d, probe += (i64)head * d * d, odds += (i64)head * n;
  double square[4] = {};
  squares<T, double>(keys, probe, tiles, start, n, d, square);
#pragma unroll
  for (int i = 0; i < 4; i++) {
    int row = start + ty * 4 + i, some = 0;
    for (int column = tx; column < d && row < n; column += 16) some |= widen(keys[(i64)row * d + column]) != 0;
    for (int step = 1; step < 16; step *= 2) {
      square[i] += __shfl_xor_sync(0xffffffff, square[i], step);
      some |= __shfl_xor_sync(0xffffffff, some, step);
    }
    if (tx == i && row < n) odds[row] = some && square[i] < 0x1p-1000 ? 0x1p-1000 : square[i];
  }
}

#define ODDS(name, T)                                                                                    \
  extern "C" __global__ void __launch_bounds__(256)                                                      \
      odds_##name(const T* keys, const double* probe, double* odds, int n, int d) {                      \
    odds_wide<T>(keys, probe, odds, n, d);                                                               \
  }

ODDS(float16, Half)
ODDS(bfloat16, Brain)
ODDS(float32, float)
ODDS(float64, double)

// roots[i] = v with v^(2/p) + a v = a for a = odds[i], or a little more; NaN stays.  As lewis_roots in lev/cpu/rows.py,
// where it is explained; power holds p.  256 threads, one number each.
extern "C" __global__ void __launch_bounds__(256)
    lewis_roots(const double* odds, const double* power, double* roots, int n) {
  int i = blockIdx.x * 256 + threadIdx.x;
  if (i >= n) return;
  double p = power[0], a = odds[i], s = p < 2 ? 2 / p - 1 : p / 2 - 1, z = p > 2 ? a : pow(a, p / 2);
  if (z > 1) z = 1;
  if (z > 0x1p-5 && a - a == 0)
    for (int turn = 0; turn < 60; turn++) {
      double least = pow(z, s), left = p < 2 ? least : 1, right = p < 2 ? a : a * least;
      double rise = p < 2 ? (1 + s) * left + right : left + (1 + s) * right;
      double step = (z * (left + right) - a) / rise;
      z -= step > 0 ? step : 0;
      if (!(step > 0x1p-10 * z)) break;
    }
  roots[i] = p < 2 ? z : pow(z, p / 2);
}
