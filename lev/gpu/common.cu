// What every kernel shares.  No header is included, so that NVRTC needs none; tests/cuda_on_cpu.h lets a C++
// compiler read the same sources.
typedef unsigned short u16;
typedef unsigned int u32;
typedef long long i64;

#ifndef LEV_ON_CPU
#define LEV_SHARED(type, name)                                \
  extern __shared__ __align__(16) unsigned char lev_shared[]; \
  type* name = (type*)lev_shared

__device__ inline float widen_half(u16 bits) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(bits));
  return wide;
}

// c += a b for a (16, 16) and b (16, 8) of 16-bit numbers, spread over a warp; sums in float32
__device__ inline void mma_half(float* c, const u32* a, const u32* b) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ inline void mma_brain(float* c, const u32* a, const u32* b) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif

struct Half { u16 bits; };
struct Brain { u16 bits; };  // bfloat16

__device__ inline float widen(Half x) { return widen_half(x.bits); }
__device__ inline float widen(Brain x) { return __uint_as_float((u32)x.bits << 16); }
__device__ inline float widen(float x) { return x; }
__device__ inline double widen(double x) { return x; }
__device__ inline void multiply(float* c, const u32* a, const u32* b, Half) { mma_half(c, a, b); }
__device__ inline void multiply(float* c, const u32* a, const u32* b, Brain) { mma_brain(c, a, b); }

// Two neighbours of a 16-bit row as one word, 0 beyond its end; rows of odd length are not aligned to words.
__device__ inline u32 pair(const u16* row, int column, int d) {
  if (!(d & 1)) return column < d ? *(const u32*)(row + column) : 0;
  u32 low = column < d ? row[column] : 0, high = column + 1 < d ? row[column + 1] : 0;
  return low | high << 16;
}

// Adds to square |P k|^2 of 4 rows of a tile of 64, P lower triangular (d, d): those of threadIdx.x / 16, each thread
// its part, by components threadIdx.x % 16 + 16 j.  256 threads; tiles is shared room for (2, 16, 65) numbers.
template <class T, class C>
__device__ inline void squares(const T* keys, const C* probe, C* tiles, int start, int n, int d, C* square) {
  constexpr int TILE = 64, DEEP = 16;
  int ty = threadIdx.x / 16, tx = threadIdx.x % 16;
  for (int first = 0; first < d; first += TILE) {
    C sum[4][4] = {};
    for (int deep = 0; deep < min(first + TILE, d); deep += DEEP) {  // P is lower triangular
      for (int at = threadIdx.x; at < DEEP * TILE; at += 256) {
        int column = deep + at % DEEP, row = start + at / DEEP, line = first + at / DEEP;
        C* to = tiles + at % DEEP * (TILE + 1) + at / DEEP;
        to[0] = row < n && column < d ? (C)widen(keys[(i64)row * d + column]) : 0;
        to[DEEP * (TILE + 1)] = line < d && column < d ? probe[(i64)line * d + column] : 0;
      }
      __syncthreads();
      for (int k = 0; k < DEEP; k++) {
        const C *x = tiles + k * (TILE + 1), *y = x + DEEP * (TILE + 1);
        for (int i = 0; i < 16; i++) sum[i / 4][i % 4] += x[ty * 4 + i / 4] * y[tx + i % 4 * 16];
      }
      __syncthreads();
    }
    for (int i = 0; i < 16; i++) square[i / 4] += sum[i / 4][i % 4] * sum[i / 4][i % 4];
  }
}
