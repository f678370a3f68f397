// The arithmetic of a quantization grid, once, for host and device. Every operation is one IEEE float32 operation,
// rounded once: no contraction, no reciprocal, no flush to zero. qru/ops/grid.py says the same in PyTorch.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define QRU_HD static __host__ __device__ __forceinline__
#else
// Internal linkage matters: this header is compiled once per instruction set, and a shared copy built for a newer one
// must never be the one an older machine runs.
#define QRU_HD static inline
#endif

namespace qru {

enum Dtype : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

QRU_HD uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

QRU_HD float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

constexpr uint32_t kSignBit = 0x80000000u;
constexpr uint32_t kInfBits = 0x7f800000u;

QRU_HD float bfloat16_to_float(uint16_t h) { return float_of(static_cast<uint32_t>(h) << 16); }

// Round half to even. Finite values may round to infinity; NaN stays NaN.
QRU_HD uint16_t float_to_bfloat16(float x) {
  uint32_t bits = bits_of(x);
  if ((bits & ~kSignBit) > kInfBits) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

QRU_HD float half_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t magnitude = h & 0x7fffu;
  if (magnitude >= 0x7c00u) return float_of(sign | kInfBits | (magnitude & 0x3ffu) << 13);
  // Denormal halves are a multiple of 2^-24, exact in float32.
  if (magnitude < 0x400u) return float_of(sign | bits_of(static_cast<float>(magnitude) * 5.9604644775390625e-8f));
  return float_of(sign | ((magnitude << 13) + (112u << 23)));
}

// Round half to even, denormal halves included.
QRU_HD uint16_t float_to_half(float x) {
  const uint32_t bits = bits_of(x);
  const uint16_t sign = static_cast<uint16_t>((bits & kSignBit) >> 16);
  const uint32_t magnitude = bits & ~kSignBit;
  if (magnitude > kInfBits) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and above
  if (magnitude < 0x38800000u) {
    // Below 2^-14: adding 0.5 leaves the value, rounded to a multiple of 2^-24, in the last bits of the sum.
    return static_cast<uint16_t>(sign | (bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u));
  }
  const uint32_t odd = (magnitude >> 13) & 1u;
  return static_cast<uint16_t>(sign | ((magnitude - (112u << 23) + 0xfffu + odd) >> 13));
}

QRU_HD float rounded_to(float x, int dtype) {
  if (dtype == kBFloat16) return bfloat16_to_float(float_to_bfloat16(x));
  if (dtype == kFloat16) return half_to_float(float_to_half(x));
  return x;
}

QRU_HD float divided(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fdiv_rn(a, b);
#else
  return a / b;
#endif
}

// Step and zero point of a group; `low` and `high` are what its codes minus the zero point are clamped to.
struct Grid {
  float step;
  float zero;
  float low;
  float high;
};

struct GridRule {
  int bits;
  int symmetric;
  float denominator;
  int scale_dtype;
};

QRU_HD Grid grid_with(float step, float zero, const GridRule& rule) {
  const float qmin = -static_cast<float>(1 << (rule.bits - 1));
  const float qmax = -qmin - 1.0f;
  return Grid{step, zero, qmin - zero, qmax - zero};
}

// lo and hi: smallest and largest weight of the group. Symmetric grids use only the larger magnitude.
QRU_HD Grid grid_of_range(float lo, float hi, const GridRule& rule) {
  if (rule.symmetric) {
    const float largest = -lo > hi ? -lo : hi;  // fmaxf may return either zero of a pair; a step is never -0
    return grid_with(rounded_to(divided(largest, rule.denominator), rule.scale_dtype), 0.0f, rule);
  }
  lo = fminf(lo, 0.0f);
  hi = fmaxf(hi, 0.0f);
  const float step = rounded_to(divided(hi - lo + 0.0f, rule.denominator), rule.scale_dtype);
  const float zero = step > 0.0f ? rintf(divided(-lo, step)) - static_cast<float>(1 << (rule.bits - 1)) : 0.0f;
  return grid_with(step, zero, rule);
}

// A code minus its zero point, as a float. Clamping to whole numbers before rounding equals clamping after it.
QRU_HD float level_of(float w, const Grid& grid) {
  if (!(grid.step > 0.0f)) return 0.0f;
  return rintf(fminf(fmaxf(divided(w, grid.step), grid.low), grid.high));
}

QRU_HD int code_of_level(float level, const Grid& grid) { return static_cast<int>(level + grid.zero); }

}  // namespace qru
