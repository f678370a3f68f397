// csrc/merge_quantize_cuda.cu on a CPU: what CUDA C++ and csrc/cuda_device.h give it, in plain C++, for tests.
//
// A block's threads are fibers of one thread, taken up in an order drawn anew for every stretch between barriers, so
// that a kernel that needs a barrier it does not have gives results that depend on the seed. A warp's intrinsics are
// barriers of 32 fibers. Blocks run one after another; shared memory starts each of them filled with NaN.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static
#define QRU_DYNAMIC_SHARED(type, name) type* const name = reinterpret_cast<type*>(host::dynamic_shared)

struct float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
struct Dim {
  unsigned x;
};

namespace host {

constexpr int kWarpSize = 32;
constexpr size_t kStackBytes = 128 << 10;
constexpr size_t kSharedBytes = 128 << 10;
alignas(64) static char dynamic_shared[kSharedBytes];

// A context is made once; after that switches are by _longjmp, which calls no kernel.
struct Fiber {
  ucontext_t context;
  jmp_buf at;
  std::vector<char> stack;
  bool started, done;
  int waits_for;  // 0: may run; 1: its warp; 2: its block
};

static std::vector<Fiber> fibers;
static jmp_buf scheduler;
static int current;
static unsigned seed = 1;
static uint64_t exchanged[1024];  // a slot a thread, for warp intrinsics
static const std::function<void()>* body;

inline unsigned drawn() { return seed = seed * 1664525u + 1013904223u; }

inline void wait(int scope) {
  fibers[current].waits_for = scope;
  if (_setjmp(fibers[current].at) == 0) _longjmp(scheduler, 1);
}

inline void enter() {
  (*body)();
  fibers[current].done = true;
  _longjmp(scheduler, 1);
}

inline void resume(int i) {
  current = i;
  Fiber& fiber = fibers[static_cast<size_t>(i)];
  if (_setjmp(scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.at, 1);
  fiber.started = true;
  setcontext(&fiber.context);
}

// Releases every warp, or the block, all of whose living threads wait.
inline bool release(int scope, size_t width) {
  bool any = false;
  for (size_t first = 0; first < fibers.size(); first += width) {
    size_t waiting = 0, living = 0;
    for (size_t i = first; i < first + width && i < fibers.size(); ++i) {
      living += !fibers[i].done;
      waiting += !fibers[i].done && fibers[i].waits_for == scope;
    }
    if (waiting == 0 || waiting != living) continue;
    for (size_t i = first; i < first + width && i < fibers.size(); ++i) fibers[i].waits_for = 0;
    any = true;
  }
  return any;
}

inline void run_block(int threads) {
  for (size_t i = 0; i < kSharedBytes; i += 4) memset(dynamic_shared + i, 0xff, 4);
  fibers.resize(static_cast<size_t>(threads));
  for (Fiber& fiber : fibers) {
    fiber.stack.resize(kStackBytes);
    fiber.started = fiber.done = false;
    fiber.waits_for = 0;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, reinterpret_cast<void (*)()>(enter), 0);
  }
  std::vector<int> order(static_cast<size_t>(threads));
  for (int i = 0; i < threads; ++i) order[static_cast<size_t>(i)] = i;
  for (;;) {
    for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[(drawn() >> 8) % i]);
    bool ran = false;
    for (int i : order) {
      if (fibers[static_cast<size_t>(i)].done || fibers[static_cast<size_t>(i)].waits_for != 0) continue;
      resume(i);
      ran = true;
    }
    if (ran) continue;
    const bool warps = release(1, kWarpSize);
    if (warps || release(2, fibers.size())) continue;
    break;
  }
  for (const Fiber& fiber : fibers) {
    if (fiber.done) continue;
    fprintf(stderr, "threads of a block wait at different barriers\n");
    abort();
  }
}

}  // namespace host

static Dim blockIdx, gridDim;
struct ThreadIndex {
  struct X {
    operator unsigned() const { return static_cast<unsigned>(host::current); }
  } x;
};
static ThreadIndex threadIdx;

inline void __syncwarp() { host::wait(1); }
inline void __syncthreads() { host::wait(2); }

template <typename T>
inline T exchange(T x, int from) {
  static_assert(sizeof(T) <= 8, "a slot holds eight bytes");
  memcpy(&host::exchanged[host::current], &x, sizeof x);
  host::wait(1);
  T got;
  memcpy(&got, &host::exchanged[host::current / 32 * 32 + from], sizeof got);
  host::wait(1);
  return got;
}
template <typename T>
inline T __shfl_xor_sync(unsigned, T x, int mask) {
  return exchange(x, (host::current % 32) ^ mask);
}
template <typename T>
inline T __shfl_down_sync(unsigned, T x, int delta) {
  const int lane = host::current % 32;
  return exchange(x, lane + delta < 32 ? lane + delta : lane);
}
template <typename T, typename Join>
inline T joined(T x, Join join) {
  memcpy(&host::exchanged[host::current], &x, sizeof x);
  host::wait(1);
  T all{};
  for (int lane = 0; lane < 32; ++lane) {
    T got;
    memcpy(&got, &host::exchanged[host::current / 32 * 32 + lane], sizeof got);
    all = lane == 0 ? got : join(all, got);
  }
  host::wait(1);
  return all;
}
inline int __reduce_add_sync(unsigned, int x) {
  return joined(x, [](int a, int b) { return a + b; });
}
inline uint32_t __reduce_max_sync(unsigned, uint32_t x) {
  return joined(x, [](uint32_t a, uint32_t b) { return std::max(a, b); });
}
inline int __syncthreads_or(int x) {
  static int any;
  host::wait(2);
  any = 0;
  host::wait(2);
  any |= x != 0;
  host::wait(2);
  return any;
}

template <typename T>
inline T atomicAdd(T* to, T x) {
  const T old = *to;
  *to = old + x;
  return old;
}
template <typename T>
inline T atomicMin(T* to, T x) {
  const T old = *to;
  *to = std::min(old, x);
  return old;
}
template <typename T>
inline T atomicMax(T* to, T x) {
  const T old = *to;
  *to = std::max(old, x);
  return old;
}
template <typename T>
inline T __ldg(const T* at) {
  if (reinterpret_cast<uintptr_t>(at) % alignof(T) != 0) {
    fprintf(stderr, "a load of %zu bytes is not aligned\n", sizeof(T));
    abort();
  }
  return *at;
}
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline int __clz(int x) { return __builtin_clz(static_cast<unsigned>(x)); }
using std::max;
using std::min;

enum cudaError_t { cudaSuccess };
using cudaStream_t = void*;
enum { cudaFuncAttributeMaxDynamicSharedMemorySize, cudaMemcpyDeviceToDevice };
inline const char* cudaGetErrorString(cudaError_t) { return "none"; }
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, int, int bytes) {
  if (static_cast<size_t>(bytes) > host::kSharedBytes) abort();
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, int, cudaStream_t) {
  memcpy(to, from, bytes);
  return cudaSuccess;
}

#include "grid.h"

namespace qru {
namespace {

constexpr unsigned kAll = 0xffffffffu;

template <typename Kernel, typename... Args>
cudaError_t launch(Kernel kernel, int64_t blocks, int threads, int, void*, const Args&... args) {
  gridDim.x = static_cast<unsigned>(blocks);
  const std::function<void()> run = [&] { kernel(args...); };
  host::body = &run;
  for (int64_t i = 0; i < blocks; ++i) {
    blockIdx.x = static_cast<unsigned>(i);
    host::run_block(threads);
  }
  return cudaSuccess;
}

inline void prefetch(const void*) {}
inline float larger(float a, float b) { return std::isnan(a) || std::isnan(b) ? NAN : a > b ? a : b; }
inline float smaller(float a, float b) { return std::isnan(a) || std::isnan(b) ? NAN : a < b ? a : b; }

template <int kType>
float half_of(uint32_t word, int i) {
  const uint16_t h = static_cast<uint16_t>(word >> (16 * i));
  return kType == kBFloat16 ? bfloat16_to_float(h) : half_to_float(h);
}
template <int kType>
uint32_t rounded_pair(float low, float high) {
  const auto to = [](float x) { return kType == kBFloat16 ? float_to_bfloat16(x) : float_to_half(x); };
  return static_cast<uint32_t>(to(low)) | static_cast<uint32_t>(to(high)) << 16;
}
template <int kType>
uint32_t larger_pair(uint32_t a, uint32_t b) {
  return rounded_pair<kType>(larger(half_of<kType>(a, 0), half_of<kType>(b, 0)),
                             larger(half_of<kType>(a, 1), half_of<kType>(b, 1)));
}
template <int kType>
uint32_t smaller_pair(uint32_t a, uint32_t b) {
  return rounded_pair<kType>(smaller(half_of<kType>(a, 0), half_of<kType>(b, 0)),
                             smaller(half_of<kType>(a, 1), half_of<kType>(b, 1)));
}
inline float half_bits_to_float(uint16_t h) { return half_to_float(h); }

inline float saturated(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
inline float fma_saturated(float a, float b, float c) { return saturated(fmaf(a, b, c)); }
inline float product_saturated(float a, float b) { return saturated(a * b); }
inline void count_unequal(int& count, float a, float b) { count += a != b; }

inline uint32_t byte_distances(uint32_t a, uint32_t b) {
  uint32_t r = 0;
  for (int shift = 0; shift < 32; shift += 8) {
    const int d = static_cast<int>(a >> shift & 0xffu) - static_cast<int>(b >> shift & 0xffu);
    r |= static_cast<uint32_t>(abs(d)) << shift;
  }
  return r;
}
inline uint32_t add_bytes(uint32_t a, uint32_t c) {
  for (int shift = 0; shift < 32; shift += 8) c += a >> shift & 0xffu;
  return c;
}
inline uint32_t bytes_of(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t both = static_cast<uint64_t>(b) << 32 | a;
  uint32_t r = 0;
  for (int i = 0; i < 4; ++i) r |= static_cast<uint32_t>(both >> (8 * (selector >> (4 * i) & 7u)) & 0xffu) << (8 * i);
  return r;
}

// A tensor core's sum of 16 products and d: exact products, added exactly, then cut off (not rounded) to 24 bits. The
// fragments' layout is that of the PTX manual for mma.m16n8k16.
inline float cut(double x) {
  const float near = static_cast<float>(x);
  return std::fabs(static_cast<double>(near)) > std::fabs(x) ? std::nextafterf(near, 0.0f) : near;
}
inline void mma_bf16(float* d, const uint32_t* a, const uint32_t* b) {
  static uint32_t all_a[1024][4], all_b[1024][2];
  memcpy(all_a[host::current], a, sizeof all_a[0]);
  memcpy(all_b[host::current], b, sizeof all_b[0]);
  host::wait(1);
  const int warp = host::current / 32 * 32, lane = host::current % 32;
  for (int q = 0; q < 4; ++q) {
    const int row = lane / 4 + q / 2 * 8, column = lane % 4 * 2 + q % 2;
    double sum = d[q];
    for (int k = 0; k < 16; ++k) {
      const int pair = k % 8 / 2;
      const uint32_t left = all_a[warp + row % 8 * 4 + pair][row / 8 + k / 8 * 2];
      const uint32_t right = all_b[warp + column * 4 + pair][k / 8];
      sum += static_cast<double>(half_of<kBFloat16>(left, k % 2)) * half_of<kBFloat16>(right, k % 2);
    }
    d[q] = cut(sum);
  }
  host::wait(1);
}

}  // namespace
}  // namespace qru
