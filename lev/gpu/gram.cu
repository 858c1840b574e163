// Gram matrices of many heads: keys (heads, n, d) -> partial (heads, slices, d, d) float64, the sum of k k^T over the
// rows of each slice.  Every entry is written by one thread, in a fixed order: no atomics, the same bits each time.

// 16-bit rows on tensor cores.  Products are exact in float32, 32 of them are summed in float32, then in float64.
// Grid (slices, heads); warps take the 32 x 32 blocks of the lower triangle, and D = 32 * blocks >= d.
template <class T, int D>
__device__ void gram_mma(const u16* keys, double* partial, int n, int d, int span) {
  constexpr int TILE = 64, STRIDE = D + 8, SIDE = D / 32, THREADS = 16 * SIDE * (SIDE + 1);
  constexpr int PAIRS = D / 2 * (TILE / 2), MINE = (PAIRS + THREADS - 1) / THREADS;
  LEV_SHARED(u32, words);  // (TILE / 2, STRIDE): rows 2r and 2r + 1 of a column in one word
  int lane = threadIdx.x % 32, group = lane / 4, quarter = lane % 4, bi = 0, bj = threadIdx.x / 32;
  while (bj > bi) bj -= ++bi;
  int first = blockIdx.x * span, last = min(n, first + span);
  keys += (i64)blockIdx.y * n * d;
  double sum[2][4][4] = {};
  u32 ahead[MINE][2];
  auto load = [&](int start) {
    for (int i = 0; i < MINE; i++) {
      int at = threadIdx.x + i * THREADS, row = start + at / (D / 2) * 2, column = at % (D / 2) * 2;
      for (int j = 0; j < 2; j++)
        ahead[i][j] = at < PAIRS && row + j < last ? pair(keys + (i64)(row + j) * d, column, d) : 0;
    }
  };
  load(first);
  for (int start = first; start < last; start += TILE) {
    for (int i = 0; i < MINE; i++) {
      int at = threadIdx.x + i * THREADS;
      if (at < PAIRS) {
        u32* to = words + at / (D / 2) * STRIDE + at % (D / 2) * 2;
        to[0] = (ahead[i][0] & 0xffff) | ahead[i][1] << 16;
        to[1] = ahead[i][0] >> 16 | (ahead[i][1] & 0xffff0000);
      }
    }
    __syncthreads();
    load(start + TILE);
#pragma unroll 1
    for (int deep = 0; deep < TILE / 2; deep += 16) {
      float part[2][4][4] = {};
#pragma unroll
      for (int step = 0; step < 16; step += 8) {
        const u32* top = words + (deep + step + quarter) * STRIDE + group;
        u32 a[2][4], b[4][2];
        for (int i = 0; i < 8; i++) a[i / 4][i % 4] = top[i % 4 / 2 * 4 * STRIDE + bi * 32 + i / 4 * 16 + i % 2 * 8];
        for (int j = 0; j < 8; j++) b[j / 2][j % 2] = top[j % 2 * 4 * STRIDE + bj * 32 + j / 2 * 8];
        for (int i = 0; i < 8; i++) multiply(part[i / 4][i % 4], a[i / 4], b[i % 4], T());
      }
      for (int i = 0; i < 32; i++) sum[i / 16][i / 4 % 4][i % 4] += part[i / 16][i / 4 % 4][i % 4];
    }
    __syncthreads();
  }
  partial += ((i64)blockIdx.y * gridDim.x + blockIdx.x) * d * d;
  for (int i = 0; i < 32; i++) {
    int row = bi * 32 + i / 16 * 16 + i % 4 / 2 * 8 + group, column = bj * 32 + i / 4 % 4 * 8 + quarter * 2 + i % 2;
    if (row < d && column <= row) {
      partial[row * d + column] = sum[i / 16][i / 4 % 4][i % 4];
      partial[column * d + row] = sum[i / 16][i / 4 % 4][i % 4];
    }
  }
}

// Rows of any type, each times its factor (heads, n) if there are any, in float64.  Grid (lower tiles of 64 x 64,
// slices, heads), 256 threads with 4 x 4 entries each.
template <class T, bool WEIGHTED>
__device__ void gram_wide(const T* keys, const double* factors, double* partial, int n, int d, int span) {
  constexpr int TILE = 64, DEEP = 16;
  LEV_SHARED(double, tiles);  // (2, DEEP, TILE): columns of the tile's rows, and of its columns
  int ti = 0, tj = blockIdx.x, ty = threadIdx.x / 16, tx = threadIdx.x % 16;
  while (tj > ti) tj -= ++ti;
  int first = blockIdx.y * span, last = min(n, first + span);
  keys += (i64)blockIdx.z * n * d;
  double sum[4][4] = {};
  for (int start = first; start < last; start += DEEP) {
    for (int at = threadIdx.x; at < 2 * DEEP * TILE; at += 256) {
      int row = start + at / TILE % DEEP, column = (at < DEEP * TILE ? ti : tj) * TILE + at % TILE;
      tiles[at] = row < last && column < d ? (double)widen(keys[(i64)row * d + column]) : 0;
      if (WEIGHTED && row < last) tiles[at] *= factors[(i64)blockIdx.z * n + row];
    }
    __syncthreads();
    double part[4][4] = {};
    for (int k = 0; k < DEEP; k++)
      for (int i = 0; i < 16; i++)
        part[i / 4][i % 4] += tiles[k * TILE + ty * 4 + i / 4] * tiles[(DEEP + k) * TILE + tx + i % 4 * 16];
    for (int i = 0; i < 16; i++) sum[i / 4][i % 4] += part[i / 4][i % 4];
    __syncthreads();
  }
  partial += ((i64)blockIdx.z * gridDim.y + blockIdx.y) * d * d;
  for (int i = 0; i < 16; i++) {
    int row = ti * TILE + ty * 4 + i / 4, column = tj * TILE + tx + i % 4 * 16;
    if (row < d && column <= row) {
      partial[(i64)row * d + column] = sum[i / 4][i % 4];
      partial[(i64)column * d + row] = sum[i / 4][i % 4];
    }
  }
}

#define GRAM_MMA(name, T, D)                                                                                    \
  extern "C" __global__ void __launch_bounds__(D / 2 * (D / 32 + 1), 128 / D)                                   \
      gram_##name##_##D(const u16* keys, double* partial, int n, int d, int span) {                             \
    gram_mma<T, D>(keys, partial, n, d, span);                                                                  \
  }
#define GRAM_WIDE(name, T)                                                                                      \
  extern "C" __global__ void __launch_bounds__(256)                                                             \
      gram_##name(const T* keys, double* partial, int n, int d, int span) {                                     \
    gram_wide<T, false>(keys, nullptr, partial, n, d, span);                                                    \
  }                                                                                                             \
  extern "C" __global__ void __launch_bounds__(256)                                                             \
      weighted_##name(const T* keys, const double* factors, double* partial, int n, int d, int span) {          \
    gram_wide<T, true>(keys, factors, partial, n, d, span);                                                     \
  }

GRAM_MMA(float16, Half, 64)
GRAM_MMA(float16, Half, 128)
GRAM_MMA(bfloat16, Brain, 64)
GRAM_MMA(bfloat16, Brain, 128)
GRAM_WIDE(float16, Half)
GRAM_WIDE(bfloat16, Brain)
GRAM_WIDE(float32, float)
GRAM_WIDE(float64, double)
