// The fused filter: rows (heads, n, d), a lower triangular probe X a head, column scales s, and limits (pad, least).
// A row k passes unless |X k| + pad |s k| < least, so NaN passes.  The numbers of rows that pass are appended to
// found (heads, n) in no order, count (heads,) says how many; peak (heads,) is the largest left side that fell short.
struct Found {
  int* rows;
  int* count;
  u32* peak;
};

// A warp appends: each lane brings one row or none.
__device__ inline void append(Found found, int row, bool real, float bound, float least) {
  bool pass = real && !(bound < least);
  u32 all = 0xffffffff, mask = __ballot_sync(all, pass), lane = threadIdx.x % 32;
  float most = real && !pass ? bound : 0;
  for (int step = 16; step; step /= 2) most = fmaxf(most, __shfl_xor_sync(all, most, step));
  int base = 0;
  if (lane == 0 && mask) base = atomicAdd(found.count, __popc(mask));
  if (lane == 0 && most > 0) atomicMax(found.peak, __float_as_uint(most));  // floats >= 0 are ordered as their bits
  base = __shfl_sync(all, base, 0);
  if (pass) found.rows[base + __popc(mask & ((1u << lane) - 1))] = row;
}

// 16-bit rows on tensor cores, the probe (heads, 2, D, D) as the sum of two 16-bit matrices.  Grid (blocks, heads);
// a warp takes 32 rows at a time, which stay in its registers while the probe passes by from shared memory.
template <class T, int D>
__device__ void screen_mma(const u16* keys, const u16* probe, const float* scale, const float* limit, Found found,
                           int n, int d) {
  constexpr int STRIDE = D / 2 + 4, STEPS = D / 16;
  LEV_SHARED(u32, words);  // (2, D, STRIDE): two neighbours of a row of the probe in one word; then D scales
  float* scales = (float*)(words + 2 * D * STRIDE);
  int lane = threadIdx.x % 32, group = lane / 4, quarter = lane % 4, head = blockIdx.y;
  const u32* parts = (const u32*)probe + (i64)head * D * D;
  for (int at = threadIdx.x; at < D * D; at += blockDim.x) words[at / (D / 2) * STRIDE + at % (D / 2)] = parts[at];
  for (int at = threadIdx.x; at < D; at += blockDim.x) scales[at] = at < d ? scale[head * d + at] : 0;
  __syncthreads();
  keys += (i64)head * n * d;
  found.rows += (i64)head * n, found.count += head, found.peak += head;
  for (int start = (blockIdx.x * blockDim.x / 32 + threadIdx.x / 32) * 32; start < n; start += gridDim.x * blockDim.x) {
    u32 a[2][STEPS][4];
    float square[4] = {}, norm[4] = {};  // of rows start + group + 8 i
#pragma unroll
    for (int i = 0; i < 8 * STEPS; i++) {
      int half = i / 4 / STEPS, step = i / 4 % STEPS, row = start + half * 16 + i % 2 * 8 + group;
      int column = step * 16 + i % 4 / 2 * 8 + quarter * 2;
      u32 word = row < n ? pair(keys + (i64)row * d, column, d) : 0;
      a[half][step][i % 4] = word;
      float x = widen(T{(u16)word}) * scales[column], y = widen(T{(u16)(word >> 16)}) * scales[column + 1];
      norm[half * 2 + i % 2] += x * x + y * y;
    }
#pragma unroll 1
    for (int block = 0; block < D / 8; block++) {
      float sum[2][4] = {};
#pragma unroll
      for (int step = 0; step < STEPS; step++) {
        if (step * 16 > block * 8 + 7) break;  // the probe is lower triangular
        for (int part = 0; part < 2; part++) {
          const u32* from = words + (part * D + block * 8 + group) * STRIDE + step * 8 + quarter;
          u32 b[2] = {from[0], from[4]};
          for (int half = 0; half < 2; half++) multiply(sum[half], a[half][step], b, T());
        }
      }
#pragma unroll
      for (int i = 0; i < 8; i++) square[i / 2] += sum[i / 4][i % 4] * sum[i / 4][i % 4];
    }
    float own = 0, size = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      for (int step = 1; step < 4; step *= 2) {
        square[i] += __shfl_xor_sync(0xffffffff, square[i], step);
        norm[i] += __shfl_xor_sync(0xffffffff, norm[i], step);
      }
      if (quarter == i) own = square[i], size = norm[i];
    }
    int row = start + quarter * 8 + group;
    append(found, row, row < n, sqrtf(own) + limit[2 * head] * sqrtf(size), limit[2 * head + 1]);
  }
}

// Rows of any type, the probe (heads, d, d) in C, float or double.  Grid (tiles of 64 rows, heads), 256 threads with 4
// rows and 4 components each.
template <class T, class C>
__device__ void screen_wide(const T* keys, const C* probe, const float* scale, const float* limit, Found found,
                            int n, int d) {
  LEV_SHARED(C, tiles);  // (2, 16, 65): columns of the rows, and of the probe
  int ty = threadIdx.x / 16, tx = threadIdx.x % 16, head = blockIdx.y, start = blockIdx.x * 64;
  keys += (i64)head * n * d, probe += (i64)head * d * d, scale += head * d;
  found.rows += (i64)head * n, found.count += head, found.peak += head;
  C square[4] = {}, norm[4] = {};
  squares<T, C>(keys, probe, tiles, start, n, d, square);
  C own = 0, size = 0;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    int row = start + ty * 4 + i;
    for (int column = tx; column < d && row < n; column += 16) {
      C x = (C)widen(keys[(i64)row * d + column]) * scale[column];
      norm[i] += x * x;
    }
    for (int step = 1; step < 16; step *= 2) {
      square[i] += __shfl_xor_sync(0xffffffff, square[i], step);
      norm[i] += __shfl_xor_sync(0xffffffff, norm[i], step);
    }
    if (tx == i) own = square[i], size = norm[i];
  }
  int row = start + ty * 4 + tx;
  append(found, row, tx < 4 && row < n, (float)(sqrt(own) + limit[2 * head] * sqrt(size)), limit[2 * head + 1]);
}

// The entries of a probe: of two 16-bit matrices (2, D, D), or of one (d, d).
template <class T, int D>
struct Split {
  const u16* parts;
  __device__ float at(int row, int column) const {
    return widen(T{parts[row * D + column]}) + widen(T{parts[(D + row) * D + column]});
  }
};

template <class C>
struct Whole {
  const C* matrix;
  int d;
  __device__ C at(int row, int column) const { return matrix[(i64)row * d + column]; }
};

// One row a head, as a token brings: what is read is the probe.  Grid (heads), 128 threads; a warp takes every fourth
// component, and its lanes the columns.
template <class T, class C, class P>
__device__ void screen_one(const T* keys, P probe, const float* scale, const float* limit, Found found, int d) {
  LEV_SHARED(C, x);  // the row; then a sum of squares and of norms a warp
  C* sums = x + d;
  int head = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  C square = 0, norm = 0;
  for (int at = threadIdx.x; at < d; at += 128) {
    x[at] = (C)widen(keys[(i64)head * d + at]);
    C own = x[at] * scale[head * d + at];
    norm += own * own;
  }
  __syncthreads();
  for (int row = warp; row < d; row += 4) {
    C sum = 0;
    for (int column = lane; column <= row; column += 32) sum += probe.at(row, column) * x[column];
    for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(0xffffffff, sum, step);
    square += sum * sum;
  }
  for (int step = 16; step; step /= 2) norm += __shfl_xor_sync(0xffffffff, norm, step);
  if (lane == 0) sums[2 * warp] = square, sums[2 * warp + 1] = norm;
  __syncthreads();
  if (warp) return;
  square = sums[0] + sums[2] + sums[4] + sums[6], norm = sums[1] + sums[3] + sums[5] + sums[7];
  found.rows += head, found.count += head, found.peak += head;
  append(found, 0, lane == 0, (float)(sqrt(square) + limit[2 * head] * sqrt(norm)), limit[2 * head + 1]);
}

#define SCREEN_MMA(name, T, D)                                                                                    \
  extern "C" __global__ void __launch_bounds__(256)                                                               \
      screen_##name##_##D(const u16* keys, const u16* probe, const float* scale, const float* limit, int* found,  \
                          int* count, u32* peak, int n, int d) {                                                  \
    screen_mma<T, D>(keys, probe, scale, limit, Found{found, count, peak}, n, d);                                 \
  }
#define SCREEN_WIDE(name, T, C)                                                                                   \
  extern "C" __global__ void __launch_bounds__(256)                                                               \
      screen_##name(const T* keys, const C* probe, const float* scale, const float* limit, int* found, int* count, \
                    u32* peak, int n, int d) {                                                                    \
    screen_wide<T, C>(keys, probe, scale, limit, Found{found, count, peak}, n, d);                                \
  }

SCREEN_MMA(float16, Half, 64)
SCREEN_MMA(float16, Half, 128)
SCREEN_MMA(bfloat16, Brain, 64)
SCREEN_MMA(bfloat16, Brain, 128)
SCREEN_WIDE(float16, Half, float)
SCREEN_WIDE(bfloat16, Brain, float)
SCREEN_WIDE(float32, float, float)
SCREEN_WIDE(float64, double, double)

#define ONE_SPLIT(name, T, D)                                                                                       \
  extern "C" __global__ void __launch_bounds__(128)                                                                 \
      one_##name##_##D(const T* keys, const u16* probe, const float* scale, const float* limit, int* found,         \
                       int* count, u32* peak, int d) {                                                              \
    Split<T, D> own{probe + (i64)blockIdx.x * 2 * D * D};                                                           \
    screen_one<T, float>(keys, own, scale, limit, Found{found, count, peak}, d);                                    \
  }
#define ONE_WHOLE(name, T, C)                                                                                       \
  extern "C" __global__ void __launch_bounds__(128)                                                                 \
      one_##name(const T* keys, const C* probe, const float* scale, const float* limit, int* found, int* count,     \
                 u32* peak, int d) {                                                                                \
    Whole<C> own{probe + (i64)blockIdx.x * d * d, d};                                                               \
    screen_one<T, C>(keys, own, scale, limit, Found{found, count, peak}, d);                                        \
  }

ONE_SPLIT(float16, Half, 64)
ONE_SPLIT(float16, Half, 128)
ONE_SPLIT(bfloat16, Brain, 64)
ONE_SPLIT(bfloat16, Brain, 128)
ONE_WHOLE(float16, Half, float)
ONE_WHOLE(bfloat16, Brain, float)
ONE_WHOLE(float32, float, float)
ONE_WHOLE(float64, double, double)
