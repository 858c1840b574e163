// Enough of CUDA for a C++ compiler to build the kernels of lev/gpu and run them, one block after another.  The
// threads of a block are fibers, in an order that the caller chooses: from the first, from the last, or each turn
// another.  A barrier that some threads never reach, and a shuffle that part of a warp misses, are reported.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define LEV_ON_CPU
#define __global__
#define __device__
#define __launch_bounds__(...)
#define LEV_SHARED(type, name) type* name = (type*)emulated::shared
using std::fmaxf;
using std::sqrt;

struct Triple {
  unsigned x, y, z;
};
static Triple threadIdx, blockIdx, blockDim, gridDim;
static inline int min(int a, int b) { return a < b ? a : b; }

namespace emulated {
enum Wait { NOTHING, WARP, BLOCK, DONE };
struct Fiber {
  ucontext_t context;
  jmp_buf place;
  bool began;
  char* stack;
  Wait wait;
};
static const size_t STACK = 1 << 16;
static Fiber fibers[1024];
static ucontext_t scheduler;
static jmp_buf scheduler_place;
static unsigned char* shared;
static uint64_t lanes[32][32];  // what each lane of each warp shows to the others
static void (*body)();
static unsigned now;
#if defined(__SANITIZE_ADDRESS__)
static const void* scheduler_stack;
static size_t scheduler_size;
#endif

// A jump is a hundred times faster than swapcontext, which asks the system; the sanitizer knows only the latter.
static void to_scheduler() {
#if defined(__SANITIZE_ADDRESS__)
  void* fake;
  __sanitizer_start_switch_fiber(fibers[now].wait == DONE ? nullptr : &fake, scheduler_stack, scheduler_size);
  swapcontext(&fibers[now].context, &scheduler);
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#else
  if (!_setjmp(fibers[now].place)) _longjmp(scheduler_place, 1);
#endif
}

static void wait(Wait what) {
  fibers[now].wait = what;
  to_scheduler();
}

static void start() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_size);
#endif
  body();
  fibers[now].wait = DONE;
  to_scheduler();
}

static void resume(unsigned thread) {
  now = thread;
  threadIdx = {thread, 0, 0};
#if defined(__SANITIZE_ADDRESS__)
  void* fake;
  __sanitizer_start_switch_fiber(&fake, fibers[thread].stack, STACK);
  swapcontext(&scheduler, &fibers[thread].context);
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#else
  if (_setjmp(scheduler_place)) return;
  if (fibers[thread].began) _longjmp(fibers[thread].place, 1);
  fibers[thread].began = true;
  setcontext(&fibers[thread].context);
#endif
}

// Let those go on who wait for [first, last) if all that are left there have come; says whether it did.
static bool release(Wait what, unsigned first, unsigned last) {
  unsigned waiting = 0, left = 0;
  for (unsigned i = first; i < last; i++) waiting += fibers[i].wait == what, left += fibers[i].wait != DONE;
  if (!waiting || waiting < left || (what == BLOCK && waiting < last - first)) return false;
  for (unsigned i = first; i < last; i++) fibers[i].wait = NOTHING;
  return true;
}

static bool run_block(unsigned threads, int order) {
  for (unsigned i = 0; i < threads; i++) {
    Fiber& fiber = fibers[i];
    if (!fiber.stack) fiber.stack = (char*)malloc(STACK);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = STACK;
    makecontext(&fiber.context, start, 0);
    fiber.wait = NOTHING;
    fiber.began = false;
  }
  for (unsigned turn = 0;; turn++) {
    unsigned done = 0, moved = 0;
    for (unsigned i = 0; i < threads; i++) {
      unsigned thread = order == 0 ? i : order == 1 ? threads - 1 - i : (i + 7 * turn) % threads;
      if (fibers[thread].wait == NOTHING) resume(thread), moved++;
    }
    for (unsigned i = 0; i < threads; i++) done += fibers[i].wait == DONE;
    if (done == threads) return true;
    bool freed = release(BLOCK, 0, threads);
    for (unsigned first = 0; first < threads; first += 32) freed |= release(WARP, first, min(first + 32, threads));
    if (!moved && !freed) return false;
  }
}

// Show a value to the warp and run read(values of the lanes): two meetings, so that none shows the next too early.
template <class T, class Read>
static auto together(T value, Read read) {
  uint64_t* shown = lanes[threadIdx.x / 32];
  memcpy(&shown[threadIdx.x % 32], &value, sizeof value);
  wait(WARP);
  auto found = read([&](unsigned lane) {
    T other;
    memcpy(&other, &shown[lane % 32], sizeof other);
    return other;
  });
  wait(WARP);
  return found;
}
}  // namespace emulated

static inline void __syncthreads() { emulated::wait(emulated::BLOCK); }
template <class T>
static inline T __shfl_xor_sync(unsigned, T value, int other) {
  unsigned lane = threadIdx.x % 32;
  return emulated::together(value, [&](auto of) { return of(lane ^ other); });
}
template <class T>
static inline T __shfl_sync(unsigned, T value, int other) {
  return emulated::together(value, [&](auto of) { return of(other); });
}
static inline unsigned __ballot_sync(unsigned, bool value) {
  return emulated::together(value, [&](auto of) {
    unsigned mask = 0;
    for (unsigned lane = 0; lane < 32; lane++) mask |= (unsigned)of(lane) << lane;
    return mask;
  });
}
static inline int __popc(unsigned mask) { return __builtin_popcount(mask); }
static inline int atomicAdd(int* to, int value) { return (*to += value) - value; }
static inline unsigned atomicMax(unsigned* to, unsigned value) {
  unsigned before = *to;
  if (value > before) *to = value;
  return before;
}
static inline unsigned __float_as_uint(float x) {
  unsigned bits;
  memcpy(&bits, &x, 4);
  return bits;
}
static inline float __uint_as_float(unsigned bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

static inline float widen_half(unsigned short bits) {
  _Float16 x;
  memcpy(&x, &bits, 2);
  return (float)x;
}
static inline float widen_brain(unsigned short bits) { return __uint_as_float((unsigned)bits << 16); }

// The layout of mma.m16n8k16 in the PTX manual.  Sums lose more than any tensor core is known to: every addend is cut
// to 24 bits below the largest, and so is the sum.
template <class Widen>
static void multiply_tiles(float* c, const unsigned* a, const unsigned* b, Widen widen) {
  struct Both {
    unsigned low, high;
  };
  unsigned rows[16][8], columns[8][8];
  for (int reg = 0; reg < 6; reg++)
    emulated::together(reg < 4 ? a[reg] : b[reg - 4], [&](auto of) {
      for (unsigned lane = 0; lane < 32; lane++) {
        unsigned group = lane / 4, quarter = lane % 4;
        if (reg < 4) rows[group + 8 * (reg % 2)][quarter + 4 * (reg / 2)] = of(lane);
        else columns[group][quarter + 4 * (reg - 4)] = of(lane);
      }
      return 0;
    });
  unsigned group = threadIdx.x % 32 / 4, quarter = threadIdx.x % 4;
  for (int i = 0; i < 4; i++) {
    const unsigned *x = rows[group + i / 2 * 8], *y = columns[quarter * 2 + i % 2];
    float addends[17] = {c[i]}, largest = std::fabs(c[i]);
    for (int k = 0; k < 16; k++) {
      unsigned shift = 16 * (k % 2);
      addends[k + 1] = widen(x[k / 2] >> shift & 0xffff) * widen(y[k / 2] >> shift & 0xffff);
      largest = largest > std::fabs(addends[k + 1]) ? largest : std::fabs(addends[k + 1]);
    }
    int exponent;
    std::frexp(largest, &exponent);
    double unit = std::ldexp(1.0, exponent - 24), sum = 0, plain = 0;
    for (float addend : addends) sum += std::trunc(addend / unit) * unit, plain += addend;
    std::frexp(sum, &exponent);
    unit = std::ldexp(1.0, exponent - 24);
    c[i] = std::isfinite(plain) && largest > 1e-30f ? (float)(std::trunc(sum / unit) * unit) : (float)plain;
  }
}
static inline void mma_half(float* c, const unsigned* a, const unsigned* b) { multiply_tiles(c, a, b, widen_half); }
static inline void mma_brain(float* c, const unsigned* a, const unsigned* b) { multiply_tiles(c, a, b, widen_brain); }

// Arguments are pointers and integers: each has a register or a slot of 64 bits of its own.
extern "C" int lev_launch(void* kernel, const unsigned* grid, unsigned threads, unsigned bytes, const int64_t* given,
                          int order) {
  static int64_t v[12];
  memcpy(v, given, sizeof v);
  static void* called;
  called = kernel;
  emulated::body = [] {
    typedef int64_t i;
    ((void (*)(i, i, i, i, i, i, i, i, i, i, i, i))called)(v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], v[8], v[9],
                                                           v[10], v[11]);
  };
  gridDim = {grid[0], grid[1], grid[2]};
  blockDim = {threads, 1, 1};
  bool fine = threads <= 1024;
  for (unsigned z = 0; z < grid[2]; z++)
    for (unsigned y = 0; y < grid[1]; y++)
      for (unsigned x = 0; fine && x < grid[0]; x++) {
        blockIdx = {x, y, z};
        emulated::shared = (unsigned char*)aligned_alloc(16, (bytes + 16) / 16 * 16);
        memset(emulated::shared, 0xff, bytes);  // NaN: what was not written shows
        fine = emulated::run_block(threads, order);
        free(emulated::shared);
      }
  return fine ? 0 : 1;
}
