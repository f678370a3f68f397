// Rows of merge_quantize, compiled three times: QRU_ISA_AVX512, QRU_ISA_AVX2, or neither.
//
//   columns ->   panel 0 (whole groups, ~512)   panel 1   ...
//   6 rows    [ B (6 x r, broadcast) x A panel (r x panel, packed, in L2) -> tile, in registers ]
//             per row of a tile: merge, round to the stored type -> L1             (reads weight once)
//             per row and group: range -> grid                                     (weight and merged, from L1)
//                                quantize three ways, count, add up the four sums  (weight and merged, from L1)
//             per row and panel: pack, write                                       (codes once)
//
// A thread owns blocks of 96 rows and walks each panel by panel. All memory a tile will touch is asked for one tile
// ahead, what it writes with the right to write: waiting for the lines of the codes alone cost 15 cycles per 16
// weights. Only the AVX-512 tile is wide enough to merge in registers, and only where groups are whole pairs of
// vectors; otherwise products pass through memory.
//
// Cycles per 16 weights on one Zen 4 core (512-bit operations at half rate: one FMA and one addition a cycle),
// bfloat16, int4 in groups of 128: 104 at r = 64, of which the product is 68 (floor 64), and 52 at r = 16. Of the other
// 35, quantizing and counting take about 20 (16 once everything is in L1; some 30 vector operations at two a cycle are
// 15), grids 4, merging and measuring 5, packing 2 to 3. Tried without gain: sixteen groups' divisions at once (the
// floats stored one by one stall the vector load behind them); a branch for groups whose step did not move
// (mispredicted, 4 cycles). Stores past the cache save one cycle but send whoever reads the codes next to memory.
//
// Weights go by 64: two pairs of vectors; of a bfloat16 pair one vector holds the even columns and the other the odd
// ones, which costs a shift and a mask (A's panels have the same order). Codes of all three kinds are narrowed to
// bytes, 64 to a block, and clamped, compared and counted there. Quotients w / s are rounded by one of these methods:
//   kTable       weights and step with few significant bits, up to 4 bits a code: the quotient is an exact tie or far
//                from one. w * (1 / s), rounded to a multiple of 2^-13, restores the tie and moves nothing else across
//                one. The value of a code is looked up in 32 multiples of the step.
//   kSnapped     the same for codes of 8 bits, clamped before rounding.
//   kReciprocal  w * (1 / s) is within 2^-13 of the quotient (2^-16 below 8 bits) wherever a code is not clamped; a
//                vector with a lane that near to a tie is divided. Division's results at the price of multiplication.
//   kDivision    true division, one weight at a time, for steps near the ends of float32's range.
#include "cpu_rows.h"

#include "simd.h"

#if defined(QRU_ISA_AVX512)
#define QRU_ROWS rows_avx512
#elif defined(QRU_ISA_AVX2)
#define QRU_ROWS rows_avx2
#else
#define QRU_ROWS rows_plain
#endif

namespace qru {
namespace {

#if defined(QRU_ISA_AVX512)
constexpr int kTileVectors = 4;  // 6 x 4 accumulators of 32 registers
#else
constexpr int kTileVectors = 1;  // 6 x 1 pairs of 16 registers
#endif

// Steps in this range have a normal reciprocal, and float32 sums over a span do not overflow.
constexpr float kSmallStep = 8.6736174e-19f;            // 2^-60
constexpr float kLargeStep = 1.1258999e15f;             // 2^50: 128 squares of 2 * 256 steps are below 2^126
constexpr float kSmallestNormalHalf = 6.103515625e-5f;  // 2^-14
// Up to this many steps a code fits a byte before it is clamped.
constexpr float kByteReach = 120.0f;

// Quotients by the reciprocal are this near to the true ones: 2^-13 for codes of 8 bits, 2^-16 below.
QRU_INLINE float near_tie_of(int bits) { return bits == 8 ? 0.5f - 1.2207031e-4f : 0.5f - 1.5258789e-5f; }
QRU_INLINE bool is_usual(float step) { return step == 0.0f || (step >= kSmallStep && step <= kLargeStep); }
QRU_INLINE const char* at_weight(const void* p, int type, int64_t i) {
  return static_cast<const char*>(p) + i * size_of(type);
}

// sum_k b[i][k] * a[k][j], k ascending, one FMA each; 6 rows by kVectors * 16 columns, each row handed to `finish`.
template <int kVectors, typename Finish>
QRU_INLINE void product_tile(const float* a, int64_t a_stride, const float* const* b, int64_t rank, Finish finish) {
  V acc[kTileRows][kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kTileRows; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) acc[i][j] = set1(0.0f);
  for (int64_t k = 0; k < rank; ++k) {
    V columns[kVectors];
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) columns[j] = load(a + k * a_stride + j * kLane);
#pragma GCC unroll 8
    for (int i = 0; i < kTileRows; ++i) {
      const V row = set1(b[i][k]);
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) acc[i][j] = fma(row, columns[j], acc[i][j]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kTileRows; ++i) finish(i, acc[i]);
}
template <int kVectors>
QRU_NOINLINE void product_to_memory(const float* a, int64_t a_stride, const float* const* b, int64_t rank, float* out,
                                    int64_t out_stride) {
  product_tile<kVectors>(a, a_stride, b, rank, [&](int i, const V* acc) __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) store(out + i * out_stride + j * kLane, acc[j]);
  });
}
// The same, merged with the weights at weight[i] before it leaves the registers.
template <int kVectors, int kType>
QRU_NOINLINE void product_merged(const float* a, int64_t a_stride, const float* const* b, int64_t rank,
                                 const char* const* weight, float scaling, char* merged, int64_t merged_stride) {
  product_tile<kVectors>(a, a_stride, b, rank, [&](int i, const V* acc) __attribute__((always_inline)) {
    const V scale = set1(scaling);
#pragma GCC unroll 8
    for (int j = 0; j + 1 < kVectors; j += 2) {
      const Pair w = widened<kType>(load_raw<kType>(weight[i] + j * kLane * size_of(kType)));
      store_raw<kType>(merged + (i * merged_stride + j * kLane) * size_of(kType),
                       rounded<kType>({fma(scale, acc[j], w.a), fma(scale, acc[j + 1], w.b)}));
    }
  });
}

// What is left of a group after whole steps of kStep weights, copied to `spare` and padded with zeros. Loops read it in
// place of the group's own memory; a call among their vectors would cost them their registers.
template <int kType, int64_t kStep>
QRU_INLINE const char* tail_of(const void* group, int64_t width, char* spare) {
  const int64_t left = width % kStep;
  if (left != 0) {
    memset(spare, 0, static_cast<size_t>(kStep * size_of(kType)));
    memcpy(spare, at_weight(group, kType, width - left), static_cast<size_t>(left * size_of(kType)));
  }
  return spare;
}

// Merges and measures one group: to `merged` (padded with zeros) from its products, or, without any, from `other`.
template <int kType, bool kBefore>
QRU_NOINLINE void merge_group(const void* weight, const void* other, const float* products, float scaling,
                              int64_t width, char* merged, Range& range) {
  const Block zero = zero_block();
  Extremes before{zero, zero}, after{zero, zero};
  const V scale = set1(scaling);
  alignas(64) char spare[2][kPair * 4];
  const char* weight_tail = tail_of<kType, kPair>(weight, width, spare[0]);
  const char* other_tail = tail_of<kType, kPair>(other, width, spare[1]);
  for (int64_t j = 0; j < width; j += kPair) {
    const bool whole = j + kPair <= width;
    const char* weight_at = whole ? at_weight(weight, kType, j) : weight_tail;
    if (products != nullptr) {
      const Raw<kType> w = load_raw<kType>(weight_at);
      const Pair x = widened<kType>(w);
      const Raw<kType> m =
          rounded<kType>({fma(scale, load(products + j), x.a), fma(scale, load(products + j + kLane), x.b)});
      store_raw<kType>(merged + j * size_of(kType), m);
      if constexpr (kBefore) before = widest<kType>(before, w);
      after = widest<kType>(after, m);
    } else {
      if constexpr (kBefore) {
        before = widest<kType>(before, load_raw<kType>(weight_at));
      }
      after = widest<kType>(after, load_raw<kType>(whole ? at_weight(other, kType, j) : other_tail));
    }
  }
  measure<kType>(before, after, &range.high_before);
}

struct Vgrid {
  V step, reciprocal, low, high, zero;
};
QRU_INLINE Vgrid spread(const Grid& g, float reciprocal) {
  return {set1(g.step), set1(reciprocal), set1(g.low), set1(g.high), set1(g.zero)};
}
QRU_INLINE V clamped(V t, const Vgrid& g) { return smaller(larger(t, g.low), g.high); }

// A code minus its zero point, in the low bits of a float of kRounder's size, by the ways that need no division.
template <Method kMethod>
QRU_INLINE V rounded_quotient(V w, const Vgrid& g) {
  if constexpr (kMethod == kTable) return snapped(w, g.reciprocal) + set1(kRounderAfterSnap);
  const V snap = set1(kSnap);
  return smaller(larger(snapped(w, g.reciprocal), snap + g.low), snap + g.high) + set1(kRounderAfterSnap);
}

struct Tally {
  U moved;                         // 32 bits a lane: enough for 96 rows of 2^29 weights
  int64_t crossed, changed, near;  // near: codes that changed by one
  int64_t jumps[4][256];           // codes that changed by more; four, so that an increment need not wait for another
};

QRU_INLINE void count_jumps(Block jump, uint64_t which, Tally& tally) {
  alignas(64) uint8_t x[kBlock];
  store_block(x, jump);
  for (int i = 0; which != 0; which &= which - 1, ++i) ++tally.jumps[i % 4][x[__builtin_ctzll(which)]];
}

// Codes and sums of one group by vectors.
template <int kType, bool kSymmetric, Method kMethod>
QRU_NOINLINE void quantize_group(const void* weight, const void* merged, int64_t width, const GroupWork& group,
                                 int bits, int8_t* codes, double* sums, Tally& tally) {
  const Grid &grid0 = group.before, &grid1 = group.after;
  const Vgrid g0 = spread(grid0, group.reciprocal_before), g1 = spread(grid1, group.reciprocal_after);
  const Levels levels0 = levels_of(grid0), levels1 = levels_of(grid1);
  const V rounder = set1(kRounder), none = set1(0.0f), near_tie = set1(near_tie_of(bits));
  const Block bottom = same_bytes(static_cast<int8_t>(grid0.low)), top = same_bytes(static_cast<int8_t>(grid0.high));
  U moved = tally.moved;
  int64_t crossed = 0, changed = 0, beyond = 0;
  alignas(64) char spare[2][kBlock * 4];
  const char* weight_tail = tail_of<kType, kBlock>(weight, width, spare[0]);
  const char* merged_tail = tail_of<kType, kBlock>(merged, width, spare[1]);
  for (int64_t span = 0; span < width; span += kSpan) {
    const int64_t end = span + kSpan < width ? span + kSpan : width;
    V within = none, dw2 = none, qdw = none, q2 = none;
    struct Stepped {
      V before, frozen, after;  // codes in the low bits
      V delta;
    };
    const auto step = [&](V w, V m) __attribute__((always_inline)) {
      V y0, yf, y1, d0, d1;
      if constexpr (kMethod != kReciprocal) {
        y0 = rounded_quotient<kMethod>(w, g0);
        yf = rounded_quotient<kMethod>(m, g0);
        y1 = rounded_quotient<kMethod>(m, g1);
      } else {
        const V t0 = clamped(w * g0.reciprocal, g0), tf = clamped(m * g0.reciprocal, g0);
        const V t1 = clamped(m * g1.reciprocal, g1);
        y0 = t0 + rounder;
        yf = tf + rounder;
        y1 = t1 + rounder;
        const V off = larger_magnitude(larger_magnitude(t0 - (y0 - rounder), tf - (yf - rounder)), t1 - (y1 - rounder));
        if (__builtin_expect(any_above(off, near_tie), 0)) {
          if (grid0.step > 0.0f) {
            y0 = clamped(w / g0.step, g0) + rounder;
            yf = clamped(m / g0.step, g0) + rounder;
          }
          if (grid1.step > 0.0f) y1 = clamped(m / g1.step, g1) + rounder;
        }
      }
      if constexpr (kMethod == kTable) {
        d0 = level_at(y0, levels0);
        d1 = level_at(y1, levels1);
      } else {
        d0 = (y0 - rounder) * g0.step;
        d1 = (y1 - rounder) * g1.step;
      }
      if constexpr (!kSymmetric) {
        y0 = y0 + g0.zero;
        yf = yf + g0.zero;
        y1 = y1 + g1.zero;
      }
      return Stepped{y0, yf, y1, d1 - d0};
    };
    const auto add = [&](V dw, V delta) __attribute__((always_inline)) {
      moved = count_nonzero(moved, dw);
      within = within + smaller_magnitude(dw, g0.step);
      dw2 = fma(dw, dw, dw2);
      qdw = fma(delta, dw, qdw);
      q2 = fma(delta, delta, q2);
    };
    struct Words {
      Block before, frozen, after;
    };
    const auto pair = [&](const char* w_at, const char* m_at, int n) __attribute__((always_inline)) {
      const Pair w = widened<kType>(load_raw<kType>(w_at)), m = widened<kType>(load_raw<kType>(m_at));
      const Stepped a = step(w.a, m.a), b = step(w.b, m.b);
      Pair delta{a.delta, b.delta};
      // Padding has no code, but where a zero point is out of range it would have a value.
      if (!kSymmetric && n < kPair) delta = keep_pair<kType>(delta, n);
      add(m.a - w.a, delta.a);
      add(m.b - w.b, delta.b);
      return Words{words_of<kType>(a.before, b.before), words_of<kType>(a.frozen, b.frozen),
                   words_of<kType>(a.after, b.after)};
    };
    for (int64_t j = span; j < end; j += kBlock) {
      const int n = end - j < kBlock ? static_cast<int>(end - j) : static_cast<int>(kBlock);
      const char* w = n == kBlock ? at_weight(weight, kType, j) : weight_tail;
      const char* m = n == kBlock ? at_weight(merged, kType, j) : merged_tail;
      const Words x = pair(w, m, n);
      const Words y =
          pair(w + kPair * size_of(kType), m + kPair * size_of(kType), n < kPair ? 0 : n - static_cast<int>(kPair));
      Block before = bytes_of(x.before, y.before), frozen = bytes_of(x.frozen, y.frozen);
      Block after = bytes_of(x.after, y.after);
      if constexpr (kMethod == kTable) {
        // A weight's code on its own grid never falls below the range; see plan_groups.
        before = smaller_bytes(before, top);
        frozen = larger_bytes(smaller_bytes(frozen, top), bottom);
        after = smaller_bytes(after, top);
      }
      const Block ordered = in_order(after);
      store_block(codes + j, ordered);
      if (!kSymmetric && n < kBlock) {
        before = keep_bytes(in_order(before), n);
        frozen = keep_bytes(in_order(frozen), n);
        after = keep_bytes(ordered, n);
      }
      const Block jump = difference(larger_bytes(before, after), smaller_bytes(before, after));
      const uint64_t far = above_one(jump);
      crossed += __builtin_popcountll(differing(before, frozen));
      changed += __builtin_popcountll(differing(before, after));
      beyond += __builtin_popcountll(far);
      if (far != 0) count_jumps(jump, far, tally);
    }
    add_sums(within * g0.reciprocal, dw2, qdw, q2, sums);
  }
  tally.moved = moved;
  tally.crossed += crossed;
  tally.changed += changed;
  tally.near += changed - beyond;
}

// Codes, or the values they stand for in the weight's type, of a merged group on its own grid; nothing is counted.
template <int kType, bool kSymmetric, Method kMethod>
QRU_NOINLINE void value_group(const void* merged, int64_t width, const GroupWork& group, int bits, int8_t* codes,
                              char* values) {
  const Grid& grid = group.after;
  const Vgrid g = spread(grid, group.reciprocal_after);
  const Levels levels = levels_of(grid);
  const V rounder = set1(kRounder), near_tie = set1(near_tie_of(bits));
  const Block top = same_bytes(static_cast<int8_t>(grid.high));
  alignas(64) char spare[kBlock * 4], result[kBlock * 4];
  const char* tail = tail_of<kType, kBlock>(merged, width, spare);
  const auto quotient = [&](V m) __attribute__((always_inline)) {
    if constexpr (kMethod != kReciprocal) return rounded_quotient<kMethod>(m, g);
    const V t = clamped(m * g.reciprocal, g);
    const V y = t + rounder;
    if (__builtin_expect(any_above(magnitude(t - (y - rounder)), near_tie), 0) && grid.step > 0.0f) {
      return clamped(m / g.step, g) + rounder;
    }
    return y;
  };
  const auto value = [&](V y) __attribute__((always_inline)) {
    if constexpr (kMethod == kTable) return level_at(y, levels);
    return (y - rounder) * g.step;
  };
  for (int64_t j = 0; j < width; j += kBlock) {
    const int64_t n = width - j < kBlock ? width - j : kBlock;
    const char* from = n == kBlock ? at_weight(merged, kType, j) : tail;
    const Pair x = widened<kType>(load_raw<kType>(from));
    const Pair y = widened<kType>(load_raw<kType>(from + kPair * size_of(kType)));
    Pair c{quotient(x.a), quotient(x.b)}, d{quotient(y.a), quotient(y.b)};
    if (values != nullptr) {
      char* to = n < kBlock ? result : values + j * size_of(kType);
      store_raw<kType>(to, rounded<kType>({value(c.a), value(c.b)}));
      store_raw<kType>(to + kPair * size_of(kType), rounded<kType>({value(d.a), value(d.b)}));
    }
    if (codes != nullptr) {
      if constexpr (!kSymmetric) {
        c = {c.a + g.zero, c.b + g.zero};
        d = {d.a + g.zero, d.b + g.zero};
      }
      Block bytes = bytes_of(words_of<kType>(c.a, c.b), words_of<kType>(d.a, d.b));
      if constexpr (kMethod == kTable) bytes = smaller_bytes(bytes, top);
      store_block(codes + j, in_order(bytes));
    }
  }
  if (const int64_t left = width % kBlock; left != 0 && values != nullptr) {
    memcpy(values + (width - left) * size_of(kType), result, static_cast<size_t>(left * size_of(kType)));
  }
}

template <int kType>
QRU_INLINE float stored(const void* p, int64_t i) {
  if constexpr (kType == kFloat32) return static_cast<const float*>(p)[i];
  const uint16_t h = static_cast<const uint16_t*>(p)[i];
  return kType == kBFloat16 ? bfloat16_to_float(h) : half_to_float(h);
}

// The same, one weight at a time by true division: for steps so small or large that reciprocals or sums would not fit.
template <int kType>
QRU_NOINLINE void quantize_unusual(const void* weight, const void* merged, int64_t width, const Grid& grid0,
                                   const Grid& grid1, int8_t* codes, double* sums, int64_t* counts) {
  for (int64_t j = 0; j < width; ++j) {
    const float w = stored<kType>(weight, j), m = stored<kType>(merged, j);
    const float n0 = level_of(w, grid0), n1 = level_of(m, grid1);
    const int before = code_of_level(n0, grid0), frozen = code_of_level(level_of(m, grid0), grid0);
    const int after = code_of_level(n1, grid1);
    const float dw = m - w;
    const float delta = n1 * grid1.step - n0 * grid0.step;
    codes[j] = static_cast<int8_t>(after);
    counts[0] += before != frozen;
    counts[1] += before != after;
    counts[2] += dw != 0.0f;
    if (before != after) ++counts[kCounts + (before < after ? after - before : before - after)];
    if (grid0.step > 0.0f) {
      const float bins = fabsf(dw) / grid0.step;
      sums[0] += bins < 1.0f ? bins : 1.0f;
    }
    sums[1] += static_cast<double>(dw * dw);
    sums[2] += static_cast<double>(delta * dw);
    sums[3] += static_cast<double>(delta * delta);
  }
}

template <int kType>
QRU_NOINLINE void value_unusual(const void* merged, int64_t width, const Grid& grid, int8_t* codes, char* values) {
  for (int64_t j = 0; j < width; ++j) {
    const float level = level_of(stored<kType>(merged, j), grid);
    const int code = code_of_level(level, grid);
    if (codes != nullptr) codes[j] = static_cast<int8_t>(code);
    if (values == nullptr) continue;
    const float x = (static_cast<float>(code) - grid.zero) * grid.step;  // a level may be -0, a code may not
    if constexpr (kType == kFloat32) reinterpret_cast<float*>(values)[j] = x;
    if constexpr (kType == kBFloat16) reinterpret_cast<uint16_t*>(values)[j] = float_to_bfloat16(x);
    if constexpr (kType == kFloat16) reinterpret_cast<uint16_t*>(values)[j] = float_to_half(x);
  }
}

// Codes j of a row go to bits [N j, N j + N), low first; words are little-endian, so bytes are filled in order.
template <int kBits>
QRU_NOINLINE void pack_codes(const int8_t* codes, int64_t n, uint8_t* out, int64_t out_bytes) {
  constexpr int per_byte = 8 / kBits, half = 1 << (kBits - 1);
  int64_t j = 0;
#if defined(QRU_ISA_AVX512)
  if constexpr (kBits == 4) {
    const __m512i eight = _mm512_set1_epi8(8), weights = _mm512_set1_epi16(0x1001);  // low nibble, 16 * high nibble
    for (; j + 64 <= n; j += 64) {
      const __m512i fields = _mm512_add_epi8(_mm512_loadu_si512(codes + j), eight);
      const __m256i bytes = _mm512_cvtepi16_epi8(_mm512_maddubs_epi16(fields, weights));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + j / 2), bytes);
    }
  }
#endif
  for (; j + per_byte <= n; j += per_byte) {
    unsigned byte = 0;
    for (int i = 0; i < per_byte; ++i) byte |= static_cast<unsigned>(codes[j + i] + half) << (kBits * i);
    out[j / per_byte] = static_cast<uint8_t>(byte);
  }
  int64_t done = j / per_byte;
  if (j < n) {
    unsigned byte = 0;
    for (int i = 0; j + i < n; ++i) byte |= static_cast<unsigned>(codes[j + i] + half) << (kBits * i);
    out[done++] = static_cast<uint8_t>(byte);
  }
  for (; done < out_bytes; ++done) out[done] = 0;
}

QRU_INLINE void note(int64_t& first_row, int64_t row) {
  if (first_row < 0 || row < first_row) first_row = row;
}
QRU_INLINE bool has_non_finite(const Range& r, bool before) {
  const auto outside = [](float x) { return (bits_of(x) & ~kSignBit) >= kInfBits; };
  return outside(r.high_after) || outside(r.low_after) || (before && (outside(r.high_before) || outside(r.low_before)));
}

// Whether quotients of weights of this type by these steps are exact ties or clearly none. With w = A 2^a, s = B 2^b
// and A, B of p bits, w / s is a half-integer or misses the next one by 1 / (2 B) > 2^-(p+1) or by w / s * 2^-p,
// whichever is less: at least 2^-13 for float16 (p = 11) wherever it could matter, more for bfloat16 (p = 8). The
// product by the reciprocal is within 2^-15 of the quotient for codes of 8 bits; rounding to a multiple of 2^-13 moves
// it by 2^-14.
template <int kType>
QRU_INLINE bool is_short(const Grid& grid) {
  if (kType == kBFloat16) return (bits_of(grid.step) & 0xffffu) == 0;
  if (kType == kFloat16) return (bits_of(grid.step) & 0x1fffu) == 0;
  return false;
}

// Grids of a row's groups, their storage, and by which method each group is rounded.
template <int kType, bool kSymmetric>
QRU_NOINLINE void plan_groups(const RowTask& task, int64_t row, int64_t column0, int64_t groups, GroupWork* work,
                              RowTotals& totals) {
  const MergeQuantizeParams& p = *task.params;
  const bool counting = p.counts != nullptr;
  const int64_t index = p.per_tensor ? 0 : row * (p.columns / p.group) + column0 / p.group;
  const int scale_dtype = p.rule.scale_dtype;
  // Where no code on its own grid can fall below qmin: a float32 step is all but exact, a shorter one is at most 2^-8
  // too small, which 4 bits forgive, unless it is a denormal float16, which may be a third too small.
  const auto never_below = [&](const Grid& grid) {
    if (scale_dtype == kFloat32) return true;
    return p.rule.bits <= 4 && (scale_dtype == kBFloat16 || grid.step == 0.0f || grid.step >= kSmallestNormalHalf);
  };
  for (int64_t i = 0; i < groups; ++i) {
    GroupWork& g = work[i];
    if (has_non_finite(g.range, counting)) {
      note(totals.non_finite_row, row);
      g.method = kSkip;
      continue;
    }
    if (p.per_tensor) {
      g.before = task.tensor_before;
      g.after = task.tensor_after;
    } else {
      g.after = grid_of_range(g.range.low_after, g.range.high_after, p.rule);
      g.before = counting ? grid_of_range(g.range.low_before, g.range.high_before, p.rule) : g.after;
      if (bits_of(g.before.step) >= kInfBits || bits_of(g.after.step) >= kInfBits) {
        note(totals.step_overflow_row, row);
        g.method = kSkip;
        continue;
      }
      if (p.scales != nullptr) p.scales[index + i] = g.after.step;
      if (p.zeros != nullptr) p.zeros[index + i] = g.after.zero;
      totals.counts[3] += g.before.step != g.after.step;
      totals.counts[4] += g.before.step == 0.0f;
    }
    g.reciprocal_before = g.before.step > 0.0f ? 1.0f / g.before.step : 0.0f;
    g.reciprocal_after = g.after.step > 0.0f ? 1.0f / g.after.step : 0.0f;
    if (!is_usual(g.before.step) || !is_usual(g.after.step)) {
      g.method = kDivision;
    } else if (kSymmetric && is_short<kType>(g.before) && is_short<kType>(g.after)) {
      const Range& r = g.range;
      const float reach = (r.high_after > -r.low_after ? r.high_after : -r.low_after) * g.reciprocal_before;
      const bool by_table = p.rule.bits <= 4 && never_below(g.before) && never_below(g.after) && reach <= kByteReach;
      g.method = by_table ? kTable : kSnapped;
    } else {
      g.method = kReciprocal;
    }
  }
}

// Everything about one group of one row, after it was planned.
struct GroupPlace {
  const char* weight;
  const char* merged;
  int8_t* codes;
  char* values;
};

template <int kType, bool kSymmetric, Method kMethod>
QRU_INLINE void quantize_by(const MergeQuantizeParams& p, const GroupWork& g, const GroupPlace& at, double* sums,
                            Tally& tally) {
  const int bits = p.rule.bits;
  if (p.counts == nullptr) {
    value_group<kType, kSymmetric, kMethod>(at.merged, p.group, g, bits, at.codes, at.values);
    return;
  }
  quantize_group<kType, kSymmetric, kMethod>(at.weight, at.merged, p.group, g, bits, at.codes, sums, tally);
  if (at.values != nullptr) {
    value_group<kType, kSymmetric, kMethod>(at.merged, p.group, g, bits, nullptr, at.values);
  }
}

template <int kType, bool kSymmetric>
QRU_INLINE void quantize_planned(const MergeQuantizeParams& p, const GroupWork& g, const GroupPlace& at, double* sums,
                                 Tally& tally, RowTotals& totals) {
  if (g.method == kSkip) return;
  if (g.method == kDivision) {
    if (p.counts != nullptr) {
      quantize_unusual<kType>(at.weight, at.merged, p.group, g.before, g.after, at.codes, sums, totals.counts);
    }
    if (p.counts == nullptr || at.values != nullptr) {
      value_unusual<kType>(at.merged, p.group, g.after, p.counts == nullptr ? at.codes : nullptr, at.values);
    }
    return;
  }
  if constexpr (kSymmetric && kType != kFloat32) {
    if (g.method == kTable) return quantize_by<kType, kSymmetric, kTable>(p, g, at, sums, tally);
    if (g.method == kSnapped) return quantize_by<kType, kSymmetric, kSnapped>(p, g, at, sums, tally);
  }
  quantize_by<kType, kSymmetric, kReciprocal>(p, g, at, sums, tally);
}

QRU_NOINLINE void pack_row(const MergeQuantizeParams& p, int64_t row, int64_t column0, int64_t columns,
                           const int8_t* codes) {
  uint8_t* out = static_cast<uint8_t*>(p.packed) + row * p.packed_stride;
  const bool last = column0 + columns == p.columns;
  const int stored_bits = p.rule.bits == 3 ? 8 : p.rule.bits;
  const int64_t offset = column0 * stored_bits / 8;
  const int64_t bytes = last ? p.packed_stride - offset : columns * stored_bits / 8;
  switch (p.rule.bits) {
    case 2:
      return pack_codes<2>(codes, columns, out + offset, bytes);
    case 3:
      memcpy(out + offset, codes, static_cast<size_t>(columns));
      return;
    case 4:
      return pack_codes<4>(codes, columns, out + offset, bytes);
    default:
      return pack_codes<8>(codes, columns, out + offset, bytes);
  }
}

// The tile after this one, whose memory is asked for while this one is computed: rows of a panel are short runs far
// apart, which hardware prefetchers do not follow, and a store that waits for its line holds up all that come after it.
struct NextTile {
  int64_t row, rows, column, columns;
};

QRU_INLINE void prefetch_next(const MergeQuantizeParams& p, const NextTile& next) {
  const auto lines = [&](const void* matrix, int64_t stride, int64_t from, int64_t bytes, auto prefetch) {
    if (matrix == nullptr) return;
    for (int64_t r = 0; r < next.rows; ++r) {
      const char* first = static_cast<const char*>(matrix) + (next.row + r) * stride + from;
      for (int64_t byte = 0; byte < bytes; byte += 64) prefetch(first + byte);
    }
  };
  const auto read = [](const char* at) { __builtin_prefetch(at, 0, 2); };
  const auto write = [](const char* at) {
#if defined(QRU_ISA_AVX512) || defined(QRU_ISA_AVX2)
    asm volatile("prefetchw %0" : : "m"(*at));  // the built-in asks only for reading unless told of the instruction
#else
    __builtin_prefetch(at, 1, 3);
#endif
  };
  const int64_t size = size_of(p.weight_dtype), groups = p.columns / p.group;
  const int64_t from = next.column * size, bytes = next.columns * size;
  lines(p.weight, p.columns * size, from, bytes, read);
  lines(p.new_weight, p.columns * size, from, bytes, read);
  lines(p.merged, p.columns * size, from, bytes, write);
  lines(p.dequantized, p.columns * size, from, bytes, write);
  const int64_t stored_bits = p.rule.bits == 3 ? 8 : p.rule.bits;
  lines(p.packed, p.packed_stride, next.column * stored_bits / 8, next.columns * stored_bits / 8, write);
  if (!p.per_tensor) lines(p.scales, groups * 4, next.column / p.group * 4, next.columns / p.group * 4, write);
}

// The weights that are merged next, from the second cache to the first, where nothing else would have kept them.
QRU_INLINE void prefetch_strip(const MergeQuantizeParams& p, int64_t row0, int64_t rows, int64_t column,
                               int64_t columns) {
  const int64_t size = size_of(p.weight_dtype);
  for (int64_t r = 0; r < rows; ++r) {
    const char* first = static_cast<const char*>(p.weight) + ((row0 + r) * p.columns + column) * size;
    for (int64_t byte = 0; byte < columns * size; byte += 64) __builtin_prefetch(first + byte, 0, 3);
  }
}

// A tile of rows [row0, row0 + rows) and columns [column0, column0 + columns), whose products are in scratch.products,
// or merged already in scratch.merged. All merging comes before all grids and all grids before all quantizing: a
// group's range, its step and its reciprocal are a chain of some hundred cycles, which only other groups can hide.
template <int kType, bool kSymmetric>
QRU_NOINLINE void finish_tile(const RowTask& task, int64_t row0, int64_t rows, int64_t column0, int64_t columns,
                              bool merged, const RowScratch& scratch, Tally& tally, RowTotals& totals) {
  const MergeQuantizeParams& p = *task.params;
  const int64_t groups = columns / p.group;
  const bool measure_before = p.counts != nullptr;
  const void* other = p.new_weight != nullptr ? p.new_weight : p.weight;
  const auto first_of = [&](int64_t r, int64_t i) { return (row0 + r) * p.columns + column0 + i * p.group; };
  const auto merged_of = [&](int64_t r, int64_t i) {
    return scratch.merged + (r * task.panel_pad + i * task.group_pad) * size_of(kType);
  };
  for (int64_t r = 0; r < rows; ++r) {
    GroupWork* work = scratch.groups + r * groups;
    for (int64_t i = 0; i < groups; ++i) {
      const char* weight = at_weight(p.weight, kType, first_of(r, i));
      const char* after = merged ? merged_of(r, i) : at_weight(other, kType, first_of(r, i));
      const float* products =
          p.rank > 0 && !merged ? scratch.products + r * task.panel_pad + i * task.group_pad : nullptr;
      const auto merge = measure_before ? merge_group<kType, true> : merge_group<kType, false>;
      merge(weight, after, products, p.scaling, p.group, merged_of(r, i), work[i].range);
      if (p.merged != nullptr) {
        const char* from = p.rank > 0 ? merged_of(r, i) : at_weight(other, kType, first_of(r, i));
        memcpy(static_cast<char*>(p.merged) + first_of(r, i) * size_of(kType), from,
               static_cast<size_t>(p.group * size_of(kType)));
      }
    }
  }
  if (task.ranges != nullptr) {  // one group per row
    for (int64_t r = 0; r < rows; ++r) {
      if (has_non_finite(scratch.groups[r].range, measure_before)) note(totals.non_finite_row, row0 + r);
      task.ranges[row0 + r] = scratch.groups[r].range;
    }
    return;
  }
  for (int64_t r = 0; r < rows; ++r) {
    plan_groups<kType, kSymmetric>(task, row0 + r, column0, groups, scratch.groups + r * groups, totals);
  }
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < groups; ++i) {
      const int64_t first = first_of(r, i);
      const char* values = p.dequantized == nullptr ? nullptr : at_weight(p.dequantized, kType, first);
      const GroupPlace at{at_weight(p.weight, kType, first),
                          p.rank > 0 ? merged_of(r, i) : at_weight(other, kType, first),
                          p.counts != nullptr || p.packed != nullptr ? scratch.codes + i * p.group : nullptr,
                          const_cast<char*>(values)};
      quantize_planned<kType, kSymmetric>(p, scratch.groups[r * groups + i], at, task.row_sums[row0 + r], tally,
                                          totals);
    }
    if (p.packed != nullptr) pack_row(p, row0 + r, column0, columns, scratch.codes);
  }
}

template <int kType, bool kSymmetric>
QRU_NOINLINE void rows(const RowTask& task, int64_t begin, int64_t end, const RowScratch& scratch, RowTotals& totals) {
  const MergeQuantizeParams& p = *task.params;
  constexpr int64_t kStrip = kTileVectors * kLane;
  Tally tally{};
  tally.moved = zero_bits();
  for (int64_t column0 = 0, panel = 0; column0 < p.columns; column0 += task.panel, ++panel) {
    const int64_t columns = p.columns - column0 < task.panel ? p.columns - column0 : task.panel;
    const int64_t padded = columns / p.group * task.group_pad;
    const bool fused = p.rank > 0 && kTileVectors % 2 == 0 && p.group == task.group_pad && columns % kStrip == 0;
    const float* a = task.a_panels + panel * p.rank * task.panel_pad;
    for (int64_t row0 = begin; row0 < end; row0 += kTileRows) {
      const int64_t rows = end - row0 < kTileRows ? end - row0 : kTileRows;
      const bool last = row0 + kTileRows >= end;
      NextTile next{last ? begin : row0 + kTileRows, 0, last ? column0 + task.panel : column0, 0};
      if (next.column < p.columns) {
        next.rows = end - next.row < kTileRows ? end - next.row : kTileRows;
        next.columns = p.columns - next.column < task.panel ? p.columns - next.column : task.panel;
      }
      prefetch_next(p, next);
      if (p.rank > 0) {
        const float* b[kTileRows];
        for (int i = 0; i < kTileRows; ++i) b[i] = task.b + (i < rows ? row0 + i : end - 1) * p.rank;
        for (int64_t j = 0; j < padded; j += kStrip) {
          if (j < columns) prefetch_strip(p, row0, rows, column0 + j, columns - j < kStrip ? columns - j : kStrip);
          if (fused) {
            const char* weight[kTileRows];
            for (int i = 0; i < kTileRows; ++i) {
              const int64_t row = i < rows ? row0 + i : end - 1;
              weight[i] = at_weight(p.weight, kType, row * p.columns + column0 + j);
            }
            product_merged<kTileVectors, kType>(a + j, task.panel_pad, b, p.rank, weight, p.scaling,
                                                scratch.merged + j * size_of(kType), task.panel_pad);
          } else {
            product_to_memory<kTileVectors>(a + j, task.panel_pad, b, p.rank, scratch.products + j, task.panel_pad);
          }
        }
      }
      finish_tile<kType, kSymmetric>(task, row0, rows, column0, columns, fused, scratch, tally, totals);
    }
  }
  totals.counts[0] += tally.crossed;
  totals.counts[1] += tally.changed;
  totals.counts[2] += total(tally.moved);
  totals.counts[kCounts + 1] += tally.near;
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 256; ++j) totals.counts[kCounts + j] += tally.jumps[i][j];
}

template <int kType>
static void rows_of(const RowTask& task, int64_t begin, int64_t end, const RowScratch& scratch, RowTotals& totals) {
  if (task.params->rule.symmetric) {
    rows<kType, true>(task, begin, end, scratch, totals);
  } else {
    rows<kType, false>(task, begin, end, scratch, totals);
  }
}

}  // namespace

void QRU_ROWS(const RowTask& task, int64_t begin, int64_t end, const RowScratch& scratch, RowTotals& totals) {
  switch (task.params->weight_dtype) {
    case kFloat32:
      return rows_of<kFloat32>(task, begin, end, scratch, totals);
    case kBFloat16:
      return rows_of<kBFloat16>(task, begin, end, scratch, totals);
    default:
      return rows_of<kFloat16>(task, begin, end, scratch, totals);
  }
}

}  // namespace qru
