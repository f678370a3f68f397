// What the kernels use of the GPU beyond plain CUDA C++, one instruction or launch a function. Tests put a header in
// its place that says the same in C++ (QRU_DEVICE_HEADER), so that the kernels' logic runs where there is no GPU.
#pragma once

#ifdef QRU_DEVICE_HEADER
#include QRU_DEVICE_HEADER
#else

#include <cuda_runtime.h>

#include <cstdint>

#include "grid.h"

#define QRU_DYNAMIC_SHARED(type, name) extern __shared__ __align__(16) type name[]

namespace qru {
namespace {

constexpr unsigned kAll = 0xffffffffu;

template <typename Kernel, typename... Args>
cudaError_t launch(Kernel kernel, int64_t blocks, int threads, int shared_bytes, void* stream, const Args&... args) {
  // clang-format off: in a header it takes the launch apart
  kernel<<<static_cast<unsigned>(blocks), threads, shared_bytes, static_cast<cudaStream_t>(stream)>>>(args...);
  // clang-format on
  return cudaGetLastError();
}

__device__ __forceinline__ void prefetch(const void* at) { asm volatile("prefetch.global.L2 [%0];" ::"l"(at)); }

// Larger and smaller of two floats; NaN if either is.
__device__ __forceinline__ float larger(float a, float b) {
  float r;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
  return r;
}
__device__ __forceinline__ float smaller(float a, float b) {
  float r;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
  return r;
}

// The same for two 16-bit floats in a word.
template <int kType>
__device__ __forceinline__ uint32_t larger_pair(uint32_t a, uint32_t b) {
  uint32_t r;
  if constexpr (kType == kBFloat16) asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  if constexpr (kType == kFloat16) asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}
template <int kType>
__device__ __forceinline__ uint32_t smaller_pair(uint32_t a, uint32_t b) {
  uint32_t r;
  if constexpr (kType == kBFloat16) asm("min.NaN.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  if constexpr (kType == kFloat16) asm("min.NaN.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}

// Two floats rounded to 16 bits, half to even; `low` in the low half.
template <int kType>
__device__ __forceinline__ uint32_t rounded_pair(float low, float high) {
  uint32_t r;
  if constexpr (kType == kBFloat16) asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  if constexpr (kType == kFloat16) asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}

__device__ __forceinline__ float half_bits_to_float(uint16_t h) {
  float r;
  asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(h));
  return r;
}

// a * b + c, clamped to [0, 1]; a * b likewise.
__device__ __forceinline__ float fma_saturated(float a, float b, float c) { return __saturatef(__fmaf_rn(a, b, c)); }
__device__ __forceinline__ float product_saturated(float a, float b) { return __saturatef(__fmul_rn(a, b)); }

// Counts one when a != b. As PTX because the compiler spends an addition and a select on `count += a != b`.
__device__ __forceinline__ void count_unequal(int& count, float a, float b) {
  asm("{ .reg .pred p; setp.neu.f32 p, %1, %2; @p add.s32 %0, %0, 1; }" : "+r"(count) : "f"(a), "f"(b));
}

// |a - b| of four unsigned bytes; the sum of four unsigned bytes added to c; bytes of a (0-3) and b (4-7) by selector.
__device__ __forceinline__ uint32_t byte_distances(uint32_t a, uint32_t b) {
  uint32_t r;
  asm("vabsdiff4.u32.u32.u32 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(0));
  return r;
}
__device__ __forceinline__ uint32_t add_bytes(uint32_t a, uint32_t c) { return __dp4a(a, 0x01010101u, c); }
__device__ __forceinline__ uint32_t bytes_of(uint32_t a, uint32_t b, uint32_t selector) {
  return __byte_perm(a, b, selector);
}

// d += a b for a 16 x 16 (row major), b 16 x 8 (column major), both bfloat16 pairs; d 16 x 8 float32.
__device__ __forceinline__ void mma_bf16(float* d, const uint32_t* a, const uint32_t* b) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

}  // namespace
}  // namespace qru

#endif
