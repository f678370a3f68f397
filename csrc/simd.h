// Sixteen float32 lanes, three ways: one AVX-512 register, two AVX2 registers, or an array. Each operation gives the
// same bits in all three, horizontal sums included, so that a result never tells which machine made it.
// Everything has internal linkage: a copy compiled for AVX-512 must never be linked into the plain path.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "grid.h"

#if defined(QRU_ISA_AVX512) || defined(QRU_ISA_AVX2)
#include <immintrin.h>
#endif

#define QRU_INLINE static inline __attribute__((always_inline))
#define QRU_NOINLINE static __attribute__((noinline))  // one copy per template: inlining everything costs a minute

namespace qru {
namespace {

// 1.5 * 2^23. Adding it to |x| < 2^22 rounds x half to even and leaves the integer in the low bits of the sum.
constexpr float kRounder = 12582912.0f;
// The same in two steps for |x| < 2^9: to a multiple of 2^-13 first, then to an integer.
constexpr float kSnap = 1536.0f;                  // 1.5 * 2^10
constexpr float kRounderAfterSnap = 12581376.0f;  // kRounder - kSnap

#if defined(QRU_ISA_AVX512)

struct V {
  __m512 x;
};
struct U {
  __m512i x;
};
QRU_INLINE __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
QRU_INLINE V set1(float a) { return {_mm512_set1_ps(a)}; }
QRU_INLINE V load(const float* p) { return {_mm512_loadu_ps(p)}; }
QRU_INLINE V keep(V a, int n) { return {_mm512_maskz_mov_ps(first(n), a.x)}; }
QRU_INLINE void store(float* p, V a) { _mm512_storeu_ps(p, a.x); }
QRU_INLINE V operator+(V a, V b) { return {_mm512_add_ps(a.x, b.x)}; }
QRU_INLINE V operator-(V a, V b) { return {_mm512_sub_ps(a.x, b.x)}; }
QRU_INLINE V operator*(V a, V b) { return {_mm512_mul_ps(a.x, b.x)}; }
QRU_INLINE V operator/(V a, V b) { return {_mm512_div_ps(a.x, b.x)}; }
QRU_INLINE V fma(V a, V b, V c) { return {_mm512_fmadd_ps(a.x, b.x, c.x)}; }
QRU_INLINE V smaller(V a, V b) { return {_mm512_min_ps(a.x, b.x)}; }
QRU_INLINE V larger(V a, V b) { return {_mm512_max_ps(a.x, b.x)}; }
QRU_INLINE V magnitude(V a) { return {_mm512_abs_ps(a.x)}; }
// The larger magnitude of the two, as a magnitude.
QRU_INLINE V larger_magnitude(V a, V b) { return {_mm512_range_ps(a.x, b.x, 0xb)}; }
QRU_INLINE bool any_above(V a, V b) { return _mm512_cmp_ps_mask(a.x, b.x, _CMP_GT_OQ) != 0; }
QRU_INLINE void store_low_bytes(int8_t* p, V a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_castps_si512(a.x)));
}
// Low bytes of four vectors, in order. Two word permutes and a pack cost less than four vpmovdb.
struct Words {
  __m512i x;
};
QRU_INLINE Words low_words(V a, V b) {
  const __m512i even = _mm512_set_epi16(62, 60, 58, 56, 54, 52, 50, 48, 46, 44, 42, 40, 38, 36, 34, 32, 30, 28, 26, 24,
                                        22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  return {_mm512_permutex2var_epi16(_mm512_castps_si512(a.x), even, _mm512_castps_si512(b.x))};
}
QRU_INLINE void store_bytes(int8_t* p, Words a, Words b) {
  const __m512i order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
  _mm512_storeu_si512(p, _mm512_permutexvar_epi64(order, _mm512_packs_epi16(a.x, b.x)));
}
QRU_INLINE U zero_bits() { return {_mm512_setzero_si512()}; }
QRU_INLINE U larger_bits(U m, V a) {
  return {_mm512_max_epu32(m.x, _mm512_and_si512(_mm512_castps_si512(a.x), _mm512_set1_epi32(0x7fffffff)))};
}
QRU_INLINE uint32_t largest_bits(U m) { return _mm512_reduce_max_epu32(m.x); }
QRU_INLINE float largest(V a) { return _mm512_reduce_max_ps(a.x); }
QRU_INLINE float smallest(V a) { return _mm512_reduce_min_ps(a.x); }
QRU_INLINE U count_nonzero(U n, V a) {
  const __mmask16 k = _mm512_cmp_ps_mask(a.x, _mm512_setzero_ps(), _CMP_NEQ_UQ);
  return {_mm512_mask_add_epi32(n.x, k, n.x, _mm512_set1_epi32(1))};
}
QRU_INLINE int64_t total(U n) { return _mm512_reduce_add_epi32(n.x); }

template <int kType>
QRU_INLINE V load_as(const void* p, int64_t i) {
  if constexpr (kType == kFloat32) return load(static_cast<const float*>(p) + i);
  const __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(static_cast<const uint16_t*>(p) + i));
  if constexpr (kType == kFloat16) return {_mm512_cvtph_ps(h)};
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16))};
}
template <int kType>
QRU_INLINE V load_first(const void* p, int64_t i, int n) {
  if constexpr (kType == kFloat32) return {_mm512_maskz_loadu_ps(first(n), static_cast<const float*>(p) + i)};
  const __m256i h = _mm256_maskz_loadu_epi16(first(n), static_cast<const uint16_t*>(p) + i);
  if constexpr (kType == kFloat16) return {_mm512_cvtph_ps(h)};
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16))};
}
template <int kType>
QRU_INLINE V rounded_as(V a) {
  if constexpr (kType == kFloat32) return a;
  if constexpr (kType == kFloat16) return {_mm512_cvtph_ps(_mm512_cvtps_ph(a.x, _MM_FROUND_TO_NEAREST_INT))};
  // Not vcvtneps2bf16: it flushes denormals.
  const __m512i b = _mm512_castps_si512(a.x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(b, 16), _mm512_set1_epi32(1));
  const __m512i sum = _mm512_add_epi32(_mm512_add_epi32(b, odd), _mm512_set1_epi32(0x7fff));
  return {_mm512_castsi512_ps(_mm512_and_si512(sum, _mm512_set1_epi32(static_cast<int>(0xffff0000u))))};
}
// a holds values of the type already.
template <int kType>
QRU_INLINE void store_first(void* p, int64_t i, V a, int n) {
  if constexpr (kType == kFloat32) {
    _mm512_mask_storeu_ps(static_cast<float*>(p) + i, first(n), a.x);
  } else {
    const __m256i h = kType == kFloat16 ? _mm512_cvtps_ph(a.x, _MM_FROUND_TO_NEAREST_INT)
                                        : _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(a.x), 16));
    _mm256_mask_storeu_epi16(static_cast<uint16_t*>(p) + i, first(n), h);
  }
}

// The four horizontal sums at once, added to out[0..3] in float64.
QRU_INLINE void add_sums(V a, V b, V c, V d, double* out) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a.x, b.x), _mm512_unpackhi_ps(a.x, b.x));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c.x, d.x), _mm512_unpackhi_ps(c.x, d.x));
  const __m512d lo = _mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
  const __m512d hi = _mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
  const __m512 quads = _mm512_add_ps(_mm512_castpd_ps(lo), _mm512_castpd_ps(hi));
  const __m256 pairs = _mm256_add_ps(_mm512_castps512_ps256(quads), _mm512_extractf32x8_ps(quads, 1));
  const __m128 sums = _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1));
  _mm256_storeu_pd(out, _mm256_add_pd(_mm256_loadu_pd(out), _mm256_cvtps_pd(sums)));
}

#elif defined(QRU_ISA_AVX2)

struct V {
  __m256 lo, hi;
};
struct U {
  __m256i lo, hi;
};
QRU_INLINE V set1(float a) { return {_mm256_set1_ps(a), _mm256_set1_ps(a)}; }
QRU_INLINE V load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
QRU_INLINE V keep(V a, int n) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256 lo = _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane));
  const __m256 hi = _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(n - 8), lane));
  return {_mm256_and_ps(a.lo, lo), _mm256_and_ps(a.hi, hi)};
}
QRU_INLINE void store(float* p, V a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
QRU_INLINE V operator+(V a, V b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
QRU_INLINE V operator-(V a, V b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
QRU_INLINE V operator*(V a, V b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
QRU_INLINE V operator/(V a, V b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
QRU_INLINE V fma(V a, V b, V c) { return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)}; }
QRU_INLINE V smaller(V a, V b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
QRU_INLINE V larger(V a, V b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
QRU_INLINE V magnitude(V a) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}
QRU_INLINE V larger_magnitude(V a, V b) { return larger(magnitude(a), magnitude(b)); }
QRU_INLINE bool any_above(V a, V b) {
  const __m256 above = _mm256_or_ps(_mm256_cmp_ps(a.lo, b.lo, _CMP_GT_OQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_GT_OQ));
  return _mm256_movemask_ps(above) != 0;
}
QRU_INLINE void store_low_bytes(int8_t* p, V a) {
  const __m256i low = _mm256_set1_epi32(0xff);
  const __m256i words = _mm256_packus_epi32(_mm256_and_si256(_mm256_castps_si256(a.lo), low),
                                            _mm256_and_si256(_mm256_castps_si256(a.hi), low));
  const __m256i ordered = _mm256_permute4x64_epi64(words, 0xd8);
  const __m256i bytes = _mm256_packus_epi16(ordered, ordered);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm_unpacklo_epi64(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1)));
}
struct Words {
  __m256i a, b;  // 16 low words of two vectors, each 128-bit half of 8 lanes in its place
};
QRU_INLINE __m256i low_words_of(V a) {
  // Sign-extending shifts keep the packing from saturating.
  const __m256i lo = _mm256_srai_epi32(_mm256_slli_epi32(_mm256_castps_si256(a.lo), 16), 16);
  const __m256i hi = _mm256_srai_epi32(_mm256_slli_epi32(_mm256_castps_si256(a.hi), 16), 16);
  return _mm256_permute4x64_epi64(_mm256_packs_epi32(lo, hi), 0xd8);
}
QRU_INLINE Words low_words(V a, V b) { return {low_words_of(a), low_words_of(b)}; }
QRU_INLINE void store_bytes(int8_t* p, Words a, Words b) {
  const __m256i first = _mm256_permute4x64_epi64(_mm256_packs_epi16(a.a, a.b), 0xd8);
  const __m256i second = _mm256_permute4x64_epi64(_mm256_packs_epi16(b.a, b.b), 0xd8);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), first);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 32), second);
}
QRU_INLINE U zero_bits() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
QRU_INLINE U larger_bits(U m, V a) {
  const V x = magnitude(a);
  return {_mm256_max_epu32(m.lo, _mm256_castps_si256(x.lo)), _mm256_max_epu32(m.hi, _mm256_castps_si256(x.hi))};
}
QRU_INLINE uint32_t largest_bits(U m) {
  alignas(32) uint32_t x[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(x), _mm256_max_epu32(m.lo, m.hi));
  uint32_t top = 0;
  for (int i = 0; i < 8; ++i) top = x[i] > top ? x[i] : top;
  return top;
}
QRU_INLINE float largest(V a) {
  alignas(32) float x[8];
  _mm256_store_ps(x, _mm256_max_ps(a.lo, a.hi));
  float top = x[0];
  for (int i = 1; i < 8; ++i) top = x[i] > top ? x[i] : top;
  return top;
}
QRU_INLINE float smallest(V a) {
  alignas(32) float x[8];
  _mm256_store_ps(x, _mm256_min_ps(a.lo, a.hi));
  float low = x[0];
  for (int i = 1; i < 8; ++i) low = x[i] < low ? x[i] : low;
  return low;
}
QRU_INLINE U count_nonzero(U n, V a) {
  const __m256 zero = _mm256_setzero_ps();
  return {_mm256_sub_epi32(n.lo, _mm256_castps_si256(_mm256_cmp_ps(a.lo, zero, _CMP_NEQ_UQ))),
          _mm256_sub_epi32(n.hi, _mm256_castps_si256(_mm256_cmp_ps(a.hi, zero, _CMP_NEQ_UQ)))};
}
QRU_INLINE int64_t total(U n) {
  alignas(32) int32_t x[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(x), _mm256_add_epi32(n.lo, n.hi));
  int64_t sum = 0;
  for (int i = 0; i < 8; ++i) sum += x[i];
  return sum;
}

QRU_INLINE V widened(__m128i lo, __m128i hi) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(lo), 16)),
          _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(hi), 16))};
}
template <int kType>
QRU_INLINE V load_as(const void* p, int64_t i) {
  if constexpr (kType == kFloat32) return load(static_cast<const float*>(p) + i);
  const __m128i* h = reinterpret_cast<const __m128i*>(static_cast<const uint16_t*>(p) + i);
  const __m128i lo = _mm_loadu_si128(h), hi = _mm_loadu_si128(h + 1);
  if constexpr (kType == kFloat16) return {_mm256_cvtph_ps(lo), _mm256_cvtph_ps(hi)};
  return widened(lo, hi);
}
template <int kType>
QRU_INLINE V load_first(const void* p, int64_t i, int n) {
  constexpr int64_t size = kType == kFloat32 ? 4 : 2;
  alignas(32) char copy[64] = {};
  memcpy(copy, static_cast<const char*>(p) + i * size, static_cast<size_t>(n * size));
  return load_as<kType>(copy, 0);
}
QRU_INLINE __m256i bfloat16_bits(__m256 a) {
  const __m256i b = _mm256_castps_si256(a);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(b, 16), _mm256_set1_epi32(1));
  const __m256i sum = _mm256_add_epi32(_mm256_add_epi32(b, odd), _mm256_set1_epi32(0x7fff));
  return _mm256_and_si256(sum, _mm256_set1_epi32(static_cast<int>(0xffff0000u)));
}
template <int kType>
QRU_INLINE V rounded_as(V a) {
  if constexpr (kType == kFloat32) return a;
  if constexpr (kType == kFloat16) {
    return {_mm256_cvtph_ps(_mm256_cvtps_ph(a.lo, _MM_FROUND_TO_NEAREST_INT)),
            _mm256_cvtph_ps(_mm256_cvtps_ph(a.hi, _MM_FROUND_TO_NEAREST_INT))};
  }
  return {_mm256_castsi256_ps(bfloat16_bits(a.lo)), _mm256_castsi256_ps(bfloat16_bits(a.hi))};
}
template <int kType>
QRU_INLINE void store_first(void* p, int64_t i, V a, int n) {
  alignas(32) char copy[64];
  if constexpr (kType == kFloat32) {
    store(reinterpret_cast<float*>(copy), a);
  } else if constexpr (kType == kFloat16) {
    _mm_store_si128(reinterpret_cast<__m128i*>(copy), _mm256_cvtps_ph(a.lo, _MM_FROUND_TO_NEAREST_INT));
    _mm_store_si128(reinterpret_cast<__m128i*>(copy + 16), _mm256_cvtps_ph(a.hi, _MM_FROUND_TO_NEAREST_INT));
  } else {
    const __m256i words = _mm256_packus_epi32(_mm256_srli_epi32(_mm256_castps_si256(a.lo), 16),
                                              _mm256_srli_epi32(_mm256_castps_si256(a.hi), 16));
    _mm256_store_si256(reinterpret_cast<__m256i*>(copy), _mm256_permute4x64_epi64(words, 0xd8));
  }
  constexpr int64_t size = kType == kFloat32 ? 4 : 2;
  char* out = static_cast<char*>(p) + i * size;
  if (n == 16) {
    memcpy(out, copy, 16 * size);
  } else {
    memcpy(out, copy, static_cast<size_t>(n * size));
  }
}

QRU_INLINE __m256 quads_of(__m256 a, __m256 b, __m256 c, __m256 d) {
  const __m256 ab = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
  const __m256 cd = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
  return _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(_mm256_castps_pd(ab), _mm256_castps_pd(cd))),
                       _mm256_castpd_ps(_mm256_unpackhi_pd(_mm256_castps_pd(ab), _mm256_castps_pd(cd))));
}
QRU_INLINE void add_sums(V a, V b, V c, V d, double* out) {
  const __m256 pairs = _mm256_add_ps(quads_of(a.lo, b.lo, c.lo, d.lo), quads_of(a.hi, b.hi, c.hi, d.hi));
  const __m128 sums = _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1));
  _mm256_storeu_pd(out, _mm256_add_pd(_mm256_loadu_pd(out), _mm256_cvtps_pd(sums)));
}

#else  // plain C++: the compiler's own vectors, whatever registers they end up in

typedef float Floats __attribute__((vector_size(64)));
typedef uint32_t Bits __attribute__((vector_size(64)));
struct V {
  Floats x;
};
struct U {
  Bits x;
};
#define QRU_LANES for (int i = 0; i < 16; ++i)
QRU_INLINE V set1(float a) { return {Floats{} + a}; }
QRU_INLINE V load(const float* p) {
  V r;
  memcpy(&r.x, p, sizeof r.x);
  return r;
}
QRU_NOINLINE V keep(V a, int n) {
  for (int i = n; i < 16; ++i) a.x[i] = 0.0f;
  return a;
}
QRU_INLINE void store(float* p, V a) { memcpy(p, &a.x, sizeof a.x); }
QRU_INLINE V operator+(V a, V b) { return {a.x + b.x}; }
QRU_INLINE V operator-(V a, V b) { return {a.x - b.x}; }
QRU_INLINE V operator*(V a, V b) { return {a.x * b.x}; }
QRU_INLINE V operator/(V a, V b) { return {a.x / b.x}; }
QRU_NOINLINE V fma(V a, V b, V c) {
  QRU_LANES a.x[i] = fmaf(a.x[i], b.x[i], c.x[i]);
  return a;
}
QRU_INLINE V smaller(V a, V b) { return {a.x < b.x ? a.x : b.x}; }
QRU_INLINE V larger(V a, V b) { return {a.x > b.x ? a.x : b.x}; }
QRU_INLINE Bits bits_in(V a) {
  Bits b;
  memcpy(&b, &a.x, sizeof b);
  return b;
}
QRU_INLINE V from_bits(Bits b) {
  V r;
  memcpy(&r.x, &b, sizeof b);
  return r;
}
QRU_INLINE V magnitude(V a) { return from_bits(bits_in(a) & ~kSignBit); }
QRU_INLINE V larger_magnitude(V a, V b) { return larger(magnitude(a), magnitude(b)); }
QRU_NOINLINE bool any_above(V a, V b) {
  const auto above = a.x > b.x;
  int any = 0;
  QRU_LANES any |= above[i];
  return any != 0;
}
QRU_NOINLINE void store_low_bytes(int8_t* p, V a) {
  const Bits b = bits_in(a);
  QRU_LANES p[i] = static_cast<int8_t>(static_cast<uint8_t>(b[i] & 0xffu));
}
struct Words {
  V a, b;
};
QRU_INLINE Words low_words(V a, V b) { return {a, b}; }
QRU_INLINE void store_bytes(int8_t* p, Words a, Words b) {
  store_low_bytes(p, a.a);
  store_low_bytes(p + 16, a.b);
  store_low_bytes(p + 32, b.a);
  store_low_bytes(p + 48, b.b);
}
QRU_INLINE U zero_bits() { return {Bits{}}; }
QRU_INLINE U larger_bits(U m, V a) {
  const Bits b = bits_in(a) & ~kSignBit;
  return {b > m.x ? b : m.x};
}
QRU_NOINLINE uint32_t largest_bits(U m) {
  uint32_t top = 0;
  QRU_LANES top = m.x[i] > top ? m.x[i] : top;
  return top;
}
QRU_NOINLINE float largest(V a) {
  float top = a.x[0];
  QRU_LANES top = a.x[i] > top ? a.x[i] : top;
  return top;
}
QRU_NOINLINE float smallest(V a) {
  float low = a.x[0];
  QRU_LANES low = a.x[i] < low ? a.x[i] : low;
  return low;
}
QRU_INLINE U count_nonzero(U n, V a) {
  const auto differs = a.x != 0.0f;  // all bits set, or none
  Bits minus_one;
  memcpy(&minus_one, &differs, sizeof minus_one);
  return {n.x - minus_one};
}
QRU_NOINLINE int64_t total(U n) {
  int64_t sum = 0;
  QRU_LANES sum += n.x[i];
  return sum;
}

template <int kType>
QRU_NOINLINE V load_first(const void* p, int64_t i0, int n) {
  V r{Floats{}};
  for (int i = 0; i < n; ++i) {
    if constexpr (kType == kFloat32) r.x[i] = static_cast<const float*>(p)[i0 + i];
    if constexpr (kType == kBFloat16) r.x[i] = bfloat16_to_float(static_cast<const uint16_t*>(p)[i0 + i]);
    if constexpr (kType == kFloat16) r.x[i] = half_to_float(static_cast<const uint16_t*>(p)[i0 + i]);
  }
  return r;
}
template <int kType>
QRU_INLINE V load_as(const void* p, int64_t i0) {
  return load_first<kType>(p, i0, 16);
}
template <int kType>
QRU_NOINLINE V rounded_as(V a) {
  if constexpr (kType != kFloat32) QRU_LANES a.x[i] = rounded_to(a.x[i], kType);
  return a;
}
template <int kType>
QRU_NOINLINE void store_first(void* p, int64_t i0, V a, int n) {
  for (int i = 0; i < n; ++i) {
    if constexpr (kType == kFloat32) static_cast<float*>(p)[i0 + i] = a.x[i];
    if constexpr (kType == kBFloat16) static_cast<uint16_t*>(p)[i0 + i] = float_to_bfloat16(a.x[i]);
    if constexpr (kType == kFloat16) static_cast<uint16_t*>(p)[i0 + i] = float_to_half(a.x[i]);
  }
}

QRU_NOINLINE float sum_of(V a) {
  float quad[4];
  for (int j = 0; j < 4; ++j) quad[j] = (a.x[4 * j] + a.x[4 * j + 2]) + (a.x[4 * j + 1] + a.x[4 * j + 3]);
  return (quad[0] + quad[2]) + (quad[1] + quad[3]);
}
QRU_INLINE void add_sums(V a, V b, V c, V d, double* out) {
  out[0] += sum_of(a);
  out[1] += sum_of(b);
  out[2] += sum_of(c);
  out[3] += sum_of(d);
}
#undef QRU_LANES

#endif

}  // namespace
}  // namespace qru
