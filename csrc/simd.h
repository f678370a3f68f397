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

// V: 16 float32 lanes. U: 16 counters. Block: 64 bytes of anything.
#if defined(QRU_ISA_AVX512)
struct V {
  __m512 x;
};
struct U {
  __m512i x;
};
struct Block {
  __m512i x;
};
#elif defined(QRU_ISA_AVX2)
struct V {
  __m256 lo, hi;
};
struct U {
  __m256i lo, hi;
};
struct Block {
  __m256i lo, hi;
};
#else  // plain C++: the compiler's own vectors, whatever registers they end up in
typedef float Floats __attribute__((vector_size(64)));
typedef uint32_t Bits __attribute__((vector_size(64)));
typedef int8_t Bytes __attribute__((vector_size(64)));
struct V {
  Floats x;
};
struct U {
  Bits x;
};
struct Block {
  Bytes x;
};
#endif

// 32 weights. As stored: one block of 64 bytes, or two of float32. Spread over two vectors: bfloat16 the even and the
// odd ones, which a shift and a mask give; other types the first and the second sixteen.
constexpr int size_of(int type) { return type == kFloat32 ? 4 : 2; }
template <int kType>
struct Raw {
  Block x[kType == kFloat32 ? 2 : 1];
};
struct Pair {
  V a, b;
};

#if defined(QRU_ISA_AVX512) || defined(QRU_ISA_AVX2)
// The last steps of four_extremes, for both.
template <int kType>
QRU_INLINE void store_extremes(__m256i x, __m256i y, float* out) {
  const auto top = [](__m128i a, __m128i b) { return kType == kFloat32 ? _mm_max_epu32(a, b) : _mm_max_epu16(a, b); };
  const __m256i z = kType == kFloat32 ? _mm256_max_epu32(x, y) : _mm256_max_epu16(x, y);
  __m128i q = top(_mm256_castsi256_si128(z), _mm256_extracti128_si256(z, 1));
  if constexpr (kType != kFloat32) q = top(q, _mm_slli_epi32(q, 16));  // the upper halves hold the result
  if constexpr (kType == kBFloat16) q = _mm_and_si128(q, _mm_set1_epi32(static_cast<int>(0xffff0000u)));
  if constexpr (kType == kFloat16) {
    const __m128i words = _mm_srli_epi32(q, 16);
    _mm_storeu_ps(out, _mm_cvtph_ps(_mm_packus_epi32(words, words)));
  } else {
    _mm_storeu_ps(out, _mm_castsi128_ps(q));
  }
}
#endif

#if defined(QRU_ISA_AVX512)

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
// min(|a|, |b|)
QRU_INLINE V smaller_magnitude(V a, V b) { return {_mm512_range_ps(a.x, b.x, 0xa)}; }
QRU_INLINE V snapped(V w, V reciprocal) { return fma(w, reciprocal, set1(kSnap)); }
QRU_INLINE U zero_bits() { return {_mm512_setzero_si512()}; }
QRU_INLINE U count_nonzero(U n, V a) {
  const __mmask16 k = _mm512_cmp_ps_mask(a.x, _mm512_setzero_ps(), _CMP_NEQ_UQ);
  return {_mm512_mask_add_epi32(n.x, k, n.x, _mm512_set1_epi32(1))};
}
QRU_INLINE void store_counters(uint32_t* p, U n) { _mm512_storeu_si512(p, n.x); }

QRU_INLINE Block load_block(const void* p) { return {_mm512_loadu_si512(p)}; }
QRU_INLINE void store_block(void* p, Block a) { _mm512_storeu_si512(p, a.x); }
QRU_INLINE Block zero_block() { return {_mm512_setzero_si512()}; }
QRU_INLINE Block same_bytes(int8_t byte) { return {_mm512_set1_epi8(byte)}; }
QRU_INLINE Block both(Block a, Block b) { return {_mm512_and_si512(a.x, b.x)}; }
QRU_INLINE Block smaller_bytes(Block a, Block b) { return {_mm512_min_epi8(a.x, b.x)}; }
QRU_INLINE Block larger_bytes(Block a, Block b) { return {_mm512_max_epi8(a.x, b.x)}; }
QRU_INLINE Block difference(Block a, Block b) { return {_mm512_sub_epi8(a.x, b.x)}; }
QRU_INLINE uint64_t differing(Block a, Block b) { return _mm512_cmpneq_epi8_mask(a.x, b.x); }
QRU_INLINE uint64_t above_one(Block a) { return _mm512_cmpgt_epu8_mask(a.x, _mm512_set1_epi8(1)); }
template <int kBytes>
QRU_INLINE Block larger_signed(Block a, Block b) {
  if constexpr (kBytes == 2) return {_mm512_max_epi16(a.x, b.x)};
  return {_mm512_max_epi32(a.x, b.x)};
}
template <int kBytes>
QRU_INLINE Block larger_unsigned(Block a, Block b) {
  if constexpr (kBytes == 2) return {_mm512_max_epu16(a.x, b.x)};
  return {_mm512_max_epu32(a.x, b.x)};
}

template <int kType>
QRU_INLINE Pair widened(const Raw<kType>& r) {
  if constexpr (kType == kFloat32) return {{_mm512_castsi512_ps(r.x[0].x)}, {_mm512_castsi512_ps(r.x[1].x)}};
  const __m512i x = r.x[0].x;
  if constexpr (kType == kFloat16) {
    return {{_mm512_cvtph_ps(_mm512_castsi512_si256(x))}, {_mm512_cvtph_ps(_mm512_extracti64x4_epi64(x, 1))}};
  }
  return {{_mm512_castsi512_ps(_mm512_slli_epi32(x, 16))},
          {_mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(static_cast<int>(0xffff0000u))))}};
}
// Round to nearest even in the upper half; not vcvtneps2bf16, which flushes denormals.
QRU_INLINE __m512i upper_rounded(V a) {
  const __m512i b = _mm512_castps_si512(a.x);
  const __mmask16 odd = _mm512_test_epi32_mask(b, _mm512_set1_epi32(0x10000));
  const __m512i sum = _mm512_add_epi32(b, _mm512_set1_epi32(0x7fff));
  return _mm512_mask_sub_epi32(sum, odd, sum, _mm512_set1_epi32(-1));
}
template <int kType>
QRU_INLINE Raw<kType> rounded(Pair p) {
  if constexpr (kType == kFloat32) return {{{_mm512_castps_si512(p.a.x)}, {_mm512_castps_si512(p.b.x)}}};
  if constexpr (kType == kFloat16) {
    const __m256i a = _mm512_cvtps_ph(p.a.x, _MM_FROUND_TO_NEAREST_INT);
    const __m256i b = _mm512_cvtps_ph(p.b.x, _MM_FROUND_TO_NEAREST_INT);
    return {{{_mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1)}}};
  }
  // Even weights to the lower halves; the odd ones' halves stay where they are.
  return {{{_mm512_mask_blend_epi16(0xaaaaaaaau, _mm512_srli_epi32(upper_rounded(p.a), 16), upper_rounded(p.b))}}};
}
// Low words of the 32 lanes, in the order of the weights.
template <int kType>
QRU_INLINE Block words_of(V a, V b) {
  const __m512i x = _mm512_castps_si512(a.x), y = _mm512_castps_si512(b.x);
  if constexpr (kType == kBFloat16) {
    const __m512i idx = _mm512_set_epi16(62, 30, 60, 28, 58, 26, 56, 24, 54, 22, 52, 20, 50, 18, 48, 16, 46, 14, 44, 12,
                                         42, 10, 40, 8, 38, 6, 36, 4, 34, 2, 32, 0);
    return {_mm512_permutex2var_epi16(x, idx, y)};
  }
  const __m512i even = _mm512_set_epi16(62, 60, 58, 56, 54, 52, 50, 48, 46, 44, 42, 40, 38, 36, 34, 32, 30, 28, 26, 24,
                                        22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  return {_mm512_permutex2var_epi16(x, even, y)};
}
// 64 bytes of twice 32 words that fit into them, in an order of their own.
QRU_INLINE Block bytes_of(Block a, Block b) { return {_mm512_packs_epi16(a.x, b.x)}; }
QRU_INLINE Block in_order(Block bytes) {
  return {_mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), bytes.x)};
}

// What the codes -16 .. 15 of a symmetric grid stand for, clamped to its range.
struct Levels {
  __m512 low, high;
};
QRU_INLINE Levels levels_of(const Grid& g) {
  const __m512 up = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), step = _mm512_set1_ps(g.step);
  const __m512 down = _mm512_max_ps(_mm512_sub_ps(up, _mm512_set1_ps(16.0f)), _mm512_set1_ps(g.low));
  return {_mm512_mul_ps(_mm512_min_ps(up, _mm512_set1_ps(g.high)), step), _mm512_mul_ps(down, step)};
}
QRU_INLINE V level_at(V y, const Levels& levels) {
  return {_mm512_permutex2var_ps(levels.low, _mm512_castps_si512(y.x), levels.high)};
}

// The largest lanes, as unsigned integers, of four blocks, as float32.
template <int kType>
QRU_INLINE void four_extremes(Block a, Block b, Block c, Block d, float* out) {
  constexpr int kBytes = size_of(kType);
  const auto top = [](__m512i x, __m512i y) { return larger_unsigned<kBytes>({x}, {y}).x; };
  const __m512i ab = top(_mm512_unpacklo_epi64(a.x, b.x), _mm512_unpackhi_epi64(a.x, b.x));
  const __m512i cd = top(_mm512_unpacklo_epi64(c.x, d.x), _mm512_unpackhi_epi64(c.x, d.x));
  const __m512 x = _mm512_castsi512_ps(ab), y = _mm512_castsi512_ps(cd);
  const __m512i quads =
      top(_mm512_castps_si512(_mm512_shuffle_ps(x, y, 0x88)), _mm512_castps_si512(_mm512_shuffle_ps(x, y, 0xdd)));
  store_extremes<kType>(_mm512_castsi512_si256(quads), _mm512_extracti64x4_epi64(quads, 1), out);
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
QRU_INLINE V smaller_magnitude(V a, V b) { return smaller(magnitude(a), magnitude(b)); }
QRU_INLINE V snapped(V w, V reciprocal) { return fma(w, reciprocal, set1(kSnap)); }
QRU_INLINE U zero_bits() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
QRU_INLINE U count_nonzero(U n, V a) {
  const __m256 zero = _mm256_setzero_ps();
  return {_mm256_sub_epi32(n.lo, _mm256_castps_si256(_mm256_cmp_ps(a.lo, zero, _CMP_NEQ_UQ))),
          _mm256_sub_epi32(n.hi, _mm256_castps_si256(_mm256_cmp_ps(a.hi, zero, _CMP_NEQ_UQ)))};
}
QRU_INLINE void store_counters(uint32_t* p, U n) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), n.lo);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 8), n.hi);
}

QRU_INLINE Block load_block(const void* p) {
  const __m256i* x = static_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(x), _mm256_loadu_si256(x + 1)};
}
QRU_INLINE void store_block(void* p, Block a) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), a.lo);
  _mm256_storeu_si256(static_cast<__m256i*>(p) + 1, a.hi);
}
QRU_INLINE Block zero_block() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
QRU_INLINE Block same_bytes(int8_t byte) { return {_mm256_set1_epi8(byte), _mm256_set1_epi8(byte)}; }
QRU_INLINE Block both(Block a, Block b) { return {_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)}; }
QRU_INLINE Block smaller_bytes(Block a, Block b) { return {_mm256_min_epi8(a.lo, b.lo), _mm256_min_epi8(a.hi, b.hi)}; }
QRU_INLINE Block larger_bytes(Block a, Block b) { return {_mm256_max_epi8(a.lo, b.lo), _mm256_max_epi8(a.hi, b.hi)}; }
QRU_INLINE Block difference(Block a, Block b) { return {_mm256_sub_epi8(a.lo, b.lo), _mm256_sub_epi8(a.hi, b.hi)}; }
QRU_INLINE uint64_t mask_of(__m256i lo, __m256i hi) {
  return static_cast<uint32_t>(_mm256_movemask_epi8(lo)) |
         static_cast<uint64_t>(static_cast<uint32_t>(_mm256_movemask_epi8(hi))) << 32;
}
QRU_INLINE uint64_t differing(Block a, Block b) {
  return ~mask_of(_mm256_cmpeq_epi8(a.lo, b.lo), _mm256_cmpeq_epi8(a.hi, b.hi));
}
QRU_INLINE uint64_t above_one(Block a) {
  const __m256i one = _mm256_set1_epi8(1);
  return ~mask_of(_mm256_cmpeq_epi8(_mm256_min_epu8(a.lo, one), a.lo),
                  _mm256_cmpeq_epi8(_mm256_min_epu8(a.hi, one), a.hi));
}
template <int kBytes>
QRU_INLINE Block larger_signed(Block a, Block b) {
  if constexpr (kBytes == 2) return {_mm256_max_epi16(a.lo, b.lo), _mm256_max_epi16(a.hi, b.hi)};
  return {_mm256_max_epi32(a.lo, b.lo), _mm256_max_epi32(a.hi, b.hi)};
}
template <int kBytes>
QRU_INLINE __m256i larger_unsigned_half(__m256i a, __m256i b) {
  return kBytes == 2 ? _mm256_max_epu16(a, b) : _mm256_max_epu32(a, b);
}
template <int kBytes>
QRU_INLINE Block larger_unsigned(Block a, Block b) {
  return {larger_unsigned_half<kBytes>(a.lo, b.lo), larger_unsigned_half<kBytes>(a.hi, b.hi)};
}

template <int kType>
QRU_INLINE Pair widened(const Raw<kType>& r) {
  const __m256i lo = r.x[0].lo, hi = r.x[0].hi;
  if constexpr (kType == kFloat32) {
    const Block b = r.x[1];
    return {{_mm256_castsi256_ps(lo), _mm256_castsi256_ps(hi)}, {_mm256_castsi256_ps(b.lo), _mm256_castsi256_ps(b.hi)}};
  }
  if constexpr (kType == kFloat16) {
    const auto half = [](__m128i x) { return _mm256_cvtph_ps(x); };
    return {{half(_mm256_castsi256_si128(lo)), half(_mm256_extracti128_si256(lo, 1))},
            {half(_mm256_castsi256_si128(hi)), half(_mm256_extracti128_si256(hi, 1))}};
  }
  const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
  return {{_mm256_castsi256_ps(_mm256_slli_epi32(lo, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(hi, 16))},
          {_mm256_castsi256_ps(_mm256_and_si256(lo, upper)), _mm256_castsi256_ps(_mm256_and_si256(hi, upper))}};
}
QRU_INLINE __m256i upper_rounded(__m256 a) {
  const __m256i b = _mm256_castps_si256(a);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(b, 16), _mm256_set1_epi32(1));
  return _mm256_add_epi32(_mm256_add_epi32(b, odd), _mm256_set1_epi32(0x7fff));
}
QRU_INLINE __m256i halves(__m256 a, __m256 b) {
  const __m128i x = _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT), y = _mm256_cvtps_ph(b, _MM_FROUND_TO_NEAREST_INT);
  return _mm256_set_m128i(y, x);
}
template <int kType>
QRU_INLINE Raw<kType> rounded(Pair p) {
  if constexpr (kType == kFloat32) {
    return {{{_mm256_castps_si256(p.a.lo), _mm256_castps_si256(p.a.hi)},
             {_mm256_castps_si256(p.b.lo), _mm256_castps_si256(p.b.hi)}}};
  }
  if constexpr (kType == kFloat16) return {{{halves(p.a.lo, p.a.hi), halves(p.b.lo, p.b.hi)}}};
  return {{{_mm256_blend_epi16(_mm256_srli_epi32(upper_rounded(p.a.lo), 16), upper_rounded(p.b.lo), 0xaa),
            _mm256_blend_epi16(_mm256_srli_epi32(upper_rounded(p.a.hi), 16), upper_rounded(p.b.hi), 0xaa)}}};
}
QRU_INLINE __m256i low_words(V a) {
  // Sign-extending shifts keep the packing from saturating.
  const __m256i lo = _mm256_srai_epi32(_mm256_slli_epi32(_mm256_castps_si256(a.lo), 16), 16);
  const __m256i hi = _mm256_srai_epi32(_mm256_slli_epi32(_mm256_castps_si256(a.hi), 16), 16);
  return _mm256_permute4x64_epi64(_mm256_packs_epi32(lo, hi), 0xd8);
}
template <int kType>
QRU_INLINE Block words_of(V a, V b) {
  if constexpr (kType != kBFloat16) return {low_words(a), low_words(b)};
  return {_mm256_blend_epi16(_mm256_castps_si256(a.lo), _mm256_slli_epi32(_mm256_castps_si256(b.lo), 16), 0xaa),
          _mm256_blend_epi16(_mm256_castps_si256(a.hi), _mm256_slli_epi32(_mm256_castps_si256(b.hi), 16), 0xaa)};
}
QRU_INLINE Block bytes_of(Block a, Block b) { return {_mm256_packs_epi16(a.lo, a.hi), _mm256_packs_epi16(b.lo, b.hi)}; }
QRU_INLINE Block in_order(Block bytes) {
  return {_mm256_permute4x64_epi64(bytes.lo, 0xd8), _mm256_permute4x64_epi64(bytes.hi, 0xd8)};
}

struct Levels {
  V step, high;
};
QRU_INLINE Levels levels_of(const Grid& g) { return {set1(g.step), set1(g.high)}; }
QRU_INLINE V level_at(V y, const Levels& levels) { return smaller(y - set1(kRounder), levels.high) * levels.step; }

template <int kType>
QRU_INLINE void four_extremes(Block a, Block b, Block c, Block d, float* out) {
  constexpr int kBytes = size_of(kType);
  const auto top = [](__m256i x, __m256i y) { return larger_unsigned_half<kBytes>(x, y); };
  const __m256i w = top(a.lo, a.hi), x = top(b.lo, b.hi), y = top(c.lo, c.hi), z = top(d.lo, d.hi);
  const __m256i wx = top(_mm256_unpacklo_epi64(w, x), _mm256_unpackhi_epi64(w, x));
  const __m256i yz = top(_mm256_unpacklo_epi64(y, z), _mm256_unpackhi_epi64(y, z));
  const __m256 left = _mm256_castsi256_ps(wx), right = _mm256_castsi256_ps(yz);
  const __m256i quads = top(_mm256_castps_si256(_mm256_shuffle_ps(left, right, 0x88)),
                            _mm256_castps_si256(_mm256_shuffle_ps(left, right, 0xdd)));
  store_extremes<kType>(quads, quads, out);
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

#else

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
QRU_INLINE V smaller_magnitude(V a, V b) { return smaller(magnitude(a), magnitude(b)); }
QRU_INLINE V snapped(V w, V reciprocal) { return w * reciprocal + set1(kSnap); }
QRU_INLINE U zero_bits() { return {Bits{}}; }
QRU_INLINE U count_nonzero(U n, V a) {
  const auto differs = a.x != 0.0f;  // all bits set, or none
  Bits minus_one;
  memcpy(&minus_one, &differs, sizeof minus_one);
  return {n.x - minus_one};
}
QRU_INLINE void store_counters(uint32_t* p, U n) { memcpy(p, &n.x, sizeof n.x); }

template <typename T>
QRU_INLINE T block_as(Block a) {
  T r;
  memcpy(&r, &a.x, sizeof r);
  return r;
}
template <typename T>
QRU_INLINE Block block_from(T a) {
  Block r;
  memcpy(&r.x, &a, sizeof r.x);
  return r;
}
QRU_INLINE Block load_block(const void* p) {
  Block r;
  memcpy(&r.x, p, sizeof r.x);
  return r;
}
QRU_INLINE void store_block(void* p, Block a) { memcpy(p, &a.x, sizeof a.x); }
QRU_INLINE Block zero_block() { return {Bytes{}}; }
QRU_INLINE Block same_bytes(int8_t byte) { return {Bytes{} + byte}; }
QRU_INLINE Block both(Block a, Block b) { return {a.x & b.x}; }
QRU_INLINE Block smaller_bytes(Block a, Block b) { return {a.x < b.x ? a.x : b.x}; }
QRU_INLINE Block larger_bytes(Block a, Block b) { return {a.x > b.x ? a.x : b.x}; }
QRU_INLINE Block difference(Block a, Block b) {
  typedef uint8_t Unsigned __attribute__((vector_size(64)));  // wraps where signed subtraction would overflow
  return block_from(block_as<Unsigned>(a) - block_as<Unsigned>(b));
}
QRU_NOINLINE uint64_t differing(Block a, Block b) {
  uint64_t mask = 0;
  for (int i = 0; i < 64; ++i) mask |= static_cast<uint64_t>(a.x[i] != b.x[i]) << i;
  return mask;
}
QRU_NOINLINE uint64_t above_one(Block a) {
  uint64_t mask = 0;
  for (int i = 0; i < 64; ++i) mask |= static_cast<uint64_t>(static_cast<uint8_t>(a.x[i]) > 1) << i;
  return mask;
}
template <typename T>
QRU_INLINE Block larger_lanes(Block a, Block b) {
  const T x = block_as<T>(a), y = block_as<T>(b);
  return block_from(x > y ? x : y);
}
typedef int16_t Words __attribute__((vector_size(64)));
typedef uint16_t UnsignedWords __attribute__((vector_size(64)));
typedef int32_t Integers __attribute__((vector_size(64)));
template <int kBytes>
QRU_INLINE Block larger_signed(Block a, Block b) {
  if constexpr (kBytes == 2) return larger_lanes<Words>(a, b);
  return larger_lanes<Integers>(a, b);
}
template <int kBytes>
QRU_INLINE Block larger_unsigned(Block a, Block b) {
  if constexpr (kBytes == 2) return larger_lanes<UnsignedWords>(a, b);
  return larger_lanes<Bits>(a, b);
}

// Where weight i of 32 is in a pair: lane i % 16 of a or b, or for bfloat16 lane i / 2 of one of them.
template <int kType>
QRU_INLINE float& lane(Pair& p, int i) {
  float* lanes = reinterpret_cast<float*>(&p);
  return kType == kBFloat16 ? lanes[i / 2 + 16 * (i % 2)] : lanes[i];
}
template <int kType>
QRU_NOINLINE Pair widened(const Raw<kType>& r) {
  Pair p;
  if constexpr (kType == kFloat32) {
    memcpy(&p, &r, sizeof p);
  } else {
    const UnsignedWords h = block_as<UnsignedWords>(r.x[0]);
    for (int i = 0; i < 32; ++i) lane<kType>(p, i) = kType == kFloat16 ? half_to_float(h[i]) : bfloat16_to_float(h[i]);
  }
  return p;
}
template <int kType>
QRU_NOINLINE Raw<kType> rounded(Pair p) {
  Raw<kType> r;
  if constexpr (kType == kFloat32) {
    memcpy(&r, &p, sizeof r);
  } else {
    UnsignedWords h;
    for (int i = 0; i < 32; ++i) {
      const float x = lane<kType>(p, i);
      h[i] = kType == kFloat16 ? float_to_half(x) : float_to_bfloat16(x);
    }
    r.x[0] = block_from(h);
  }
  return r;
}
template <int kType>
QRU_NOINLINE Block words_of(V a, V b) {
  Pair p{a, b};
  UnsignedWords h;
  for (int i = 0; i < 32; ++i) h[i] = static_cast<uint16_t>(bits_of(lane<kType>(p, i)) & 0xffffu);
  return block_from(h);
}
QRU_NOINLINE Block bytes_of(Block a, Block b) {
  const UnsignedWords x = block_as<UnsignedWords>(a), y = block_as<UnsignedWords>(b);
  Block r;
  for (int i = 0; i < 32; ++i) {
    r.x[i] = static_cast<int8_t>(static_cast<uint8_t>(x[i] & 0xffu));
    r.x[i + 32] = static_cast<int8_t>(static_cast<uint8_t>(y[i] & 0xffu));
  }
  return r;
}

QRU_INLINE Block in_order(Block bytes) { return bytes; }

struct Levels {
  V step, high;
};
QRU_INLINE Levels levels_of(const Grid& g) { return {set1(g.step), set1(g.high)}; }
QRU_INLINE V level_at(V y, const Levels& levels) { return smaller(y - set1(kRounder), levels.high) * levels.step; }

template <int kType>
QRU_NOINLINE void four_extremes(Block a, Block b, Block c, Block d, float* out) {
  const Block blocks[4] = {a, b, c, d};
  for (int j = 0; j < 4; ++j) {
    uint32_t top = 0;
    for (int i = 0; i < 64 / size_of(kType); ++i) {
      const uint32_t x = kType == kFloat32 ? block_as<Bits>(blocks[j])[i % 16] : block_as<UnsignedWords>(blocks[j])[i];
      top = x > top ? x : top;
    }
    const uint16_t h = static_cast<uint16_t>(top);
    out[j] = kType == kFloat32 ? float_of(top) : kType == kFloat16 ? half_to_float(h) : bfloat16_to_float(h);
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

QRU_INLINE int64_t total(U n) {
  uint32_t x[kLane];
  store_counters(x, n);
  int64_t sum = 0;
  for (uint32_t count : x) sum += count;
  return sum;
}

// Bytes from n on are cleared.
QRU_INLINE Block keep_bytes(Block a, int n) {
  static const uint8_t mask[128] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
                                    0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
                                    0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
                                    0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
                                    0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
  return both(a, load_block(mask + 64 - n));
}
template <int kType>
QRU_INLINE Raw<kType> load_raw(const void* p) {
  Raw<kType> r;
  r.x[0] = load_block(p);
  if constexpr (kType == kFloat32) r.x[1] = load_block(static_cast<const char*>(p) + 64);
  return r;
}
template <int kType>
QRU_INLINE void store_raw(void* p, const Raw<kType>& r) {
  store_block(p, r.x[0]);
  if constexpr (kType == kFloat32) store_block(static_cast<char*>(p) + 64, r.x[1]);
}
// The first n of 32 weights; the others become 0.
template <int kType>
QRU_INLINE Pair keep_pair(Pair p, int n) {
  const int a = kType == kBFloat16 ? (n + 1) / 2 : n < 16 ? n : 16;
  return {keep(p.a, a), keep(p.b, n - a)};
}

// The largest and, where there are negative numbers, the smallest weights of a type. Stored as sign and magnitude, the
// former have the largest bits as signed integers, the latter as unsigned ones; starting from zero bits counts a zero.
struct Extremes {
  Block high, low;
};
template <int kType>
QRU_INLINE Extremes widest(Extremes e, const Raw<kType>& r) {
  constexpr int kBytes = size_of(kType);
  e = {larger_signed<kBytes>(e.high, r.x[0]), larger_unsigned<kBytes>(e.low, r.x[0])};
  if constexpr (kType == kFloat32) {
    e = {larger_signed<kBytes>(e.high, r.x[1]), larger_unsigned<kBytes>(e.low, r.x[1])};
  }
  return e;
}
// A group's largest and smallest weight, and the same of its merged weights; zero where all are below or above it.
template <int kType>
QRU_INLINE void measure(const Extremes& before, const Extremes& after, float* out) {
  four_extremes<kType>(before.high, before.low, after.high, after.low, out);
}

}  // namespace
}  // namespace qru
