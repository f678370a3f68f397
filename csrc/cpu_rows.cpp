// Rows of merge_quantize, compiled three times: QRU_ISA_AVX512, QRU_ISA_AVX2, or neither.
//
//   columns ->   panel 0 (whole groups, ~256)   panel 1   ...
//   6 rows    [ B (6 x r, broadcast) x A panel (r x panel, packed, in L1/L2) -> tile, in registers, then L1 ]
//             per row and group: merge, round to the stored type, range -> grid    (reads weight once)
//                                quantize three ways, add up the four sums         (weight again, from L1)
//             per row and panel: compare code bytes, pack, write                   (codes once)
//
// Quotients w / s are taken as w * (1 / s), which is within 2^-13 of the true quotient (2^-16 below 8 bits) wherever a
// code is not clamped; only when a lane is that near to a tie is the vector divided. That keeps division's results at
// the price of multiplication.
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
#if defined(QRU_ISA_AVX512) || defined(QRU_ISA_AVX2)
constexpr bool kByFours = true;  // codes leave in blocks of four vectors
#else
constexpr bool kByFours = false;
#endif

// Steps in this range have a normal reciprocal, and their groups' sums stay well inside float32.
constexpr float kSmallStep = 8.6736174e-19f;            // 2^-60
constexpr float kLargeStep = 1.1529215e18f;             // 2^60
constexpr float kSmallestNormalHalf = 6.103515625e-5f;  // 2^-14

QRU_INLINE bool is_usual(float step) { return step == 0.0f || (step >= kSmallStep && step <= kLargeStep); }

// out[i][j] = sum_k b[i][k] * a[k][j], k ascending, one FMA each; 6 rows by kTileVectors * 16 columns.
template <int kVectors>
QRU_NOINLINE void product_tile(const float* a, int64_t a_stride, const float* const* b, int64_t rank, float* out,
                               int64_t out_stride) {
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
  for (int i = 0; i < kTileRows; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) store(out + i * out_stride + j * kLane, acc[i][j]);
}

// Merged weights of one group: read as the product tile left them (or from new_weight), written back to `merged`.
template <int kType, bool kSymmetric>
QRU_NOINLINE void merge_group(const MergeQuantizeParams& p, int64_t at, int64_t width, float* merged,
                              GroupRange& before, GroupRange& after) {
  U top_before = zero_bits(), top_after = zero_bits();
  V low_before = set1(0.0f), high_before = low_before, low_after = low_before, high_after = low_before;
  const V scaling = set1(p.scaling);
  const auto step = [&](int64_t j, int n, V w, V given) __attribute__((always_inline)) {
    V m = given;
    if (p.rank > 0) {
      V acc = load(merged + j);  // the tile is padded, reading past the group is safe
      if (n < kLane) acc = keep(acc, n);
      m = rounded_as<kType>(fma(scaling, acc, w));
    }
    if (n == kLane) {
      store(merged + j, m);
    } else {
      store_first<kFloat32>(merged, j, m, n);  // the next group's products follow
    }
    if (p.merged != nullptr) store_first<kType>(p.merged, at + j, m, n);
    top_before = larger_bits(top_before, w);
    top_after = larger_bits(top_after, m);
    if constexpr (!kSymmetric) {
      low_before = smaller(low_before, w);
      high_before = larger(high_before, w);
      low_after = smaller(low_after, m);
      high_after = larger(high_after, m);
    }
  };
  const void* other = p.new_weight != nullptr ? p.new_weight : p.weight;
  int64_t j = 0;
  for (; j + kLane <= width; j += kLane) {
    const V w = load_as<kType>(p.weight, at + j);
    step(j, kLane, w, p.rank > 0 || p.new_weight == nullptr ? w : load_as<kType>(other, at + j));
  }
  if (j < width) {
    const int n = static_cast<int>(width - j);
    step(j, n, load_first<kType>(p.weight, at + j, n), load_first<kType>(other, at + j, n));
  }
  before.largest = largest_bits(top_before);
  after.largest = largest_bits(top_after);
  if constexpr (kSymmetric) {
    before.high = float_of(before.largest);
    after.high = float_of(after.largest);
    before.low = after.low = 0.0f;
  } else {
    before.low = smallest(low_before);
    before.high = largest(high_before);
    after.low = smallest(low_after);
    after.high = largest(high_after);
  }
}

struct Vgrid {
  V step, reciprocal, low, high, zero;
};
QRU_INLINE Vgrid spread(const Grid& g, float reciprocal) {
  return {set1(g.step), set1(reciprocal), set1(g.low), set1(g.high), set1(g.zero)};
}
QRU_INLINE V clamped(V t, const Vgrid& g) { return smaller(larger(t, g.low), g.high); }

struct Codes {
  int8_t *before, *frozen, *after;
};

// Codes and sums of one group by vectors.
//   kSameGrid: the merged weight's grid is the weight's own.
//   kShort: weights and steps have so few significant bits that a quotient is either an exact tie or far from one.
//   Rounding w * (1 / s) to a multiple of 2^-13 then restores the tie and moves nothing else across one.
template <int kType, bool kSymmetric, bool kSameGrid, bool kShort>
QRU_NOINLINE void quantize_group(const void* weight, int64_t at, int64_t width, const float* merged,
                                 const GroupWork& group, float near_tie, Codes codes, double* sums, U& moved_out) {
  const Grid &grid0 = group.before, &grid1 = group.after;
  const Vgrid g0 = spread(grid0, group.reciprocal_before), g1 = spread(grid1, group.reciprocal_after);
  const V minus_step0 = set1(-grid0.step), snap = set1(kSnap), rounder_after_snap = set1(kRounderAfterSnap);
  const V rounder = set1(kRounder), none = set1(0.0f);
  U moved = moved_out;
  for (int64_t span = 0; span < width; span += kSpan) {
    const int64_t end = span + kSpan < width ? span + kSpan : width;
    V within = none, dw2 = none, qdw = none, q2 = none;
    struct Stepped {
      V before, frozen, after;
    };
    const auto step = [&](int n, V w, V m) __attribute__((always_inline)) {
      V t0 = w * g0.reciprocal, tf = m * g0.reciprocal;
      V t1 = kSameGrid ? tf : m * g1.reciprocal;
      V y0, yf, y1;
      if constexpr (kShort) {
        // On its own grid a symmetric code cannot fall below qmin: |w / s| is at most the denominator.
        y0 = (smaller(t0, g0.high) + snap) + rounder_after_snap;
        yf = (clamped(tf, g0) + snap) + rounder_after_snap;
        y1 = kSameGrid ? yf : (smaller(t1, g1.high) + snap) + rounder_after_snap;
      } else {
        t0 = clamped(t0, g0);
        tf = clamped(tf, g0);
        t1 = kSameGrid ? tf : clamped(t1, g1);
        y0 = t0 + rounder;
        yf = tf + rounder;
        y1 = kSameGrid ? yf : t1 + rounder;
      }
      V n0 = y0 - rounder, n1 = y1 - rounder;
      if constexpr (!kShort) {
        V off = larger_magnitude(t0 - n0, tf - (yf - rounder));
        if constexpr (!kSameGrid) off = larger_magnitude(off, t1 - n1);
        if (__builtin_expect(any_above(off, set1(near_tie)), 0)) {
          if (grid0.step > 0.0f) {
            y0 = clamped(w / g0.step, g0) + rounder;
            yf = clamped(m / g0.step, g0) + rounder;
          }
          if (kSameGrid) {
            y1 = yf;
          } else if (grid1.step > 0.0f) {
            y1 = clamped(m / g1.step, g1) + rounder;
          }
          n0 = y0 - rounder;
          n1 = y1 - rounder;
        }
      }
      if constexpr (!kSymmetric) {
        y0 = y0 + g0.zero;
        yf = yf + g0.zero;
        y1 = y1 + g1.zero;
      }
      const V dw = m - w;
      // Short steps make both products exact, so fusing the second changes nothing.
      V delta = kShort ? fma(n1, g1.step, n0 * minus_step0) : n1 * g1.step - n0 * g0.step;
      if (!kSymmetric && n < kLane) delta = keep(delta, n);
      moved = count_nonzero(moved, dw);
      within = within + smaller(magnitude(dw), g0.step);
      dw2 = fma(dw, dw, dw2);
      qdw = fma(delta, dw, qdw);
      q2 = fma(delta, delta, q2);
      return Stepped{y0, yf, y1};
    };
    struct Pair {
      Words before, frozen, after;
    };
    const auto pair = [&](int64_t j) __attribute__((always_inline)) {
      const Stepped a = step(kLane, load_as<kType>(weight, at + j), load(merged + j));
      const Stepped b = step(kLane, load_as<kType>(weight, at + j + kLane), load(merged + j + kLane));
      return Pair{low_words(a.before, b.before), low_words(a.frozen, b.frozen), low_words(a.after, b.after)};
    };
    int64_t j = span;
    for (; kByFours && j + 4 * kLane <= end; j += 4 * kLane) {
      const Pair a = pair(j), b = pair(j + 2 * kLane);
      store_bytes(codes.before + j, a.before, b.before);
      store_bytes(codes.frozen + j, a.frozen, b.frozen);
      store_bytes(codes.after + j, a.after, b.after);
    }
    for (; j < end; j += kLane) {
      const int n = end - j < kLane ? static_cast<int>(end - j) : kLane;
      const Stepped a = step(n, load_first<kType>(weight, at + j, n), load_first<kFloat32>(merged, j, n));
      store_low_bytes(codes.before + j, a.before);
      store_low_bytes(codes.frozen + j, a.frozen);
      store_low_bytes(codes.after + j, a.after);
    }
    add_sums(within * g0.reciprocal, dw2, qdw, q2, sums);
  }
  moved_out = moved;
}

// The same, one weight at a time by true division: for steps so small or large that reciprocals or sums would not fit.
template <int kType>
QRU_NOINLINE void quantize_unusual(const void* weight, int64_t at, int64_t width, const float* merged,
                                   const Grid& grid0, const Grid& grid1, Codes codes, double* sums, int64_t& moved) {
  for (int64_t j = 0; j < width; ++j) {
    float w;
    store_first<kFloat32>(&w, 0, load_first<kType>(weight, at + j, 1), 1);
    const float m = merged[j];
    const float n0 = level_of(w, grid0), n1 = level_of(m, grid1);
    codes.before[j] = static_cast<int8_t>(code_of_level(n0, grid0));
    codes.frozen[j] = static_cast<int8_t>(code_of_level(level_of(m, grid0), grid0));
    codes.after[j] = static_cast<int8_t>(code_of_level(n1, grid1));
    const float dw = m - w;
    const float delta = n1 * grid1.step - n0 * grid0.step;
    moved += dw != 0.0f;
    if (grid0.step > 0.0f) {
      const float bins = fabsf(dw) / grid0.step;
      sums[0] += bins < 1.0f ? bins : 1.0f;
    }
    sums[1] += static_cast<double>(dw * dw);
    sums[2] += static_cast<double>(delta * dw);
    sums[3] += static_cast<double>(delta * delta);
  }
}

QRU_NOINLINE void count_codes(const int8_t* before, const int8_t* frozen, const int8_t* after, int64_t n,
                              RowTotals& totals) {
  int64_t crossed = 0, changed = 0, jumps[4] = {0, 0, 0, 0}, j = 0;
  int64_t* histogram = totals.counts + kCounts;
#if defined(QRU_ISA_AVX512)
  const __m512i top = _mm512_set1_epi8(-128), one = _mm512_set1_epi8(1);
  for (; j + 64 <= n; j += 64) {
    const __m512i a = _mm512_loadu_si512(before + j), b = _mm512_loadu_si512(after + j);
    crossed += __builtin_popcountll(_mm512_cmpneq_epi8_mask(a, _mm512_loadu_si512(frozen + j)));
    const __mmask64 differ = _mm512_cmpneq_epi8_mask(a, b);
    if (differ == 0) continue;
    changed += __builtin_popcountll(differ);
    const __m512i u = _mm512_xor_si512(a, top), v = _mm512_xor_si512(b, top);
    const __m512i jump = _mm512_sub_epi8(_mm512_max_epu8(u, v), _mm512_min_epu8(u, v));
    __mmask64 far = _mm512_cmpgt_epu8_mask(jump, one);
    jumps[1] += __builtin_popcountll(differ & ~far);
    if (far != 0) {
      alignas(64) uint8_t x[64];
      _mm512_store_si512(x, jump);
      for (; far != 0; far &= far - 1) ++histogram[x[__builtin_ctzll(far)]];
    }
  }
#endif
  for (; j < n; ++j) {
    crossed += before[j] != frozen[j];
    const int jump = before[j] - after[j];
    changed += jump != 0;
    if (jump != 0) ++histogram[jump < 0 ? -jump : jump];
  }
  histogram[1] += jumps[1];
  totals.counts[0] += crossed;
  totals.counts[1] += changed;
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

// Grids of a row's groups, their storage, and which path each group takes.
template <int kType, bool kSymmetric>
QRU_NOINLINE void plan_groups(const RowTask& task, int64_t row, int64_t column0, int64_t groups, GroupWork* work,
                              RowTotals& totals) {
  const MergeQuantizeParams& p = *task.params;
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
    if (g.before_range.largest >= kInfBits || g.after_range.largest >= kInfBits) {
      note(totals.non_finite_row, row);
      g.path = kSkipPath;
      continue;
    }
    if (p.per_tensor) {
      g.before = task.tensor_before;
      g.after = task.tensor_after;
    } else {
      g.before = grid_of_range(g.before_range.low, g.before_range.high, p.rule);
      g.after = grid_of_range(g.after_range.low, g.after_range.high, p.rule);
      if (bits_of(g.before.step) >= kInfBits || bits_of(g.after.step) >= kInfBits) {
        note(totals.step_overflow_row, row);
        g.path = kSkipPath;
        continue;
      }
      p.scales[index + i] = g.after.step;
      if (p.zeros != nullptr) p.zeros[index + i] = g.after.zero;
      totals.counts[3] += g.before.step != g.after.step;
      totals.counts[4] += g.before.step == 0.0f;
    }
    g.reciprocal_before = g.before.step > 0.0f ? 1.0f / g.before.step : 0.0f;
    g.reciprocal_after = g.after.step > 0.0f ? 1.0f / g.after.step : 0.0f;
    if (!is_usual(g.before.step) || !is_usual(g.after.step)) {
      g.path = kDivisionPath;
    } else if (kSymmetric && never_below(g.before) && never_below(g.after) && is_short<kType>(g.before) &&
               is_short<kType>(g.after)) {
      g.path = kShortPath;
    } else {
      g.path = kReciprocalPath;
    }
  }
}

template <int kType, bool kSymmetric>
QRU_INLINE void quantize_by(const GroupWork& g, const void* weight, int64_t at, int64_t width, const float* merged,
                            float near_tie, Codes codes, double* sums, U& moved, int64_t& moved_unusual) {
  const bool same = g.before.step == g.after.step && g.before.zero == g.after.zero;
#define QRU_QUANTIZE(same_grid, is_short) \
  quantize_group<kType, kSymmetric, same_grid, is_short>(weight, at, width, merged, g, near_tie, codes, sums, moved)
  if (g.path == kSkipPath) return;
  if (g.path == kDivisionPath) {
    quantize_unusual<kType>(weight, at, width, merged, g.before, g.after, codes, sums, moved_unusual);
    return;
  }
  if constexpr (kSymmetric && kType != kFloat32) {
    if (g.path == kShortPath) {
      if (same) {
        QRU_QUANTIZE(true, true);
      } else {
        QRU_QUANTIZE(false, true);
      }
      return;
    }
  }
  if (same) {
    QRU_QUANTIZE(true, false);
  } else {
    QRU_QUANTIZE(false, false);
  }
#undef QRU_QUANTIZE
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

// The tile after this one, whose weights are asked for while this one is computed: rows of a panel are short runs far
// apart in memory, which hardware prefetchers do not follow.
struct NextTile {
  int64_t row, rows, column, columns;
};

QRU_INLINE void prefetch_row(const MergeQuantizeParams& p, const NextTile& next, int64_t r) {
  if (r >= next.rows) return;
  const int64_t size = p.weight_dtype == kFloat32 ? 4 : 2;
  const int64_t from = ((next.row + r) * p.columns + next.column) * size;
  for (int64_t byte = 0; byte < next.columns * size; byte += 64) {
    __builtin_prefetch(static_cast<const char*>(p.weight) + from + byte, 0, 2);
    if (p.new_weight != nullptr) __builtin_prefetch(static_cast<const char*>(p.new_weight) + from + byte, 0, 2);
  }
}

// A tile of rows [row0, row0 + rows) and columns [column0, column0 + columns), whose products are in scratch.merged.
// All merging comes before all grids and all grids before all quantizing: a group's range, its step and its reciprocal
// are a chain of some hundred cycles, which only other groups can hide.
template <int kType, bool kSymmetric>
QRU_NOINLINE void finish_tile(const RowTask& task, int64_t row0, int64_t rows, int64_t column0, int64_t columns,
                              const NextTile& next, const RowScratch& scratch, RowTotals& totals) {
  const MergeQuantizeParams& p = *task.params;
  const int64_t groups = columns / p.group;
  const float near_tie = p.rule.bits == 8 ? 0.5f - 1.2207031e-4f : 0.5f - 1.5258789e-5f;  // 2^-13, 2^-16
  for (int64_t r = 0; r < rows; ++r) {
    GroupWork* work = scratch.groups + r * groups;
    for (int64_t i = 0; i < groups; ++i) {
      merge_group<kType, kSymmetric>(p, (row0 + r) * p.columns + column0 + i * p.group, p.group,
                                     scratch.merged + r * task.panel_pad + i * p.group, work[i].before_range,
                                     work[i].after_range);
    }
  }
  if (task.ranges != nullptr) {  // one group per row
    for (int64_t r = 0; r < rows; ++r) {
      const GroupRange &before = scratch.groups[r].before_range, &after = scratch.groups[r].after_range;
      if (before.largest >= kInfBits || after.largest >= kInfBits) note(totals.non_finite_row, row0 + r);
      task.ranges[row0 + r] = {before.low, before.high, after.low, after.high};
    }
    return;
  }
  for (int64_t r = 0; r < rows; ++r) {
    plan_groups<kType, kSymmetric>(task, row0 + r, column0, groups, scratch.groups + r * groups, totals);
  }
  for (int64_t r = rows; r < kTileRows; ++r) prefetch_row(p, next, r);
  for (int64_t r = 0; r < rows; ++r) {
    prefetch_row(p, next, r);
    const GroupWork* work = scratch.groups + r * groups;
    U moved = zero_bits();
    int64_t moved_unusual = 0;
    for (int64_t i = 0; i < groups; ++i) {
      const int64_t first = i * p.group;
      const Codes codes{scratch.codes[0] + first, scratch.codes[1] + first, scratch.codes[2] + first};
      quantize_by<kType, kSymmetric>(work[i], p.weight, (row0 + r) * p.columns + column0 + first, p.group,
                                     scratch.merged + r * task.panel_pad + first, near_tie, codes,
                                     task.row_sums[row0 + r], moved, moved_unusual);
    }
    totals.counts[2] += total(moved) + moved_unusual;
    count_codes(scratch.codes[0], scratch.codes[1], scratch.codes[2], columns, totals);
    pack_row(p, row0 + r, column0, columns, scratch.codes[2]);
  }
}

template <int kType, bool kSymmetric>
QRU_NOINLINE void rows(const RowTask& task, int64_t begin, int64_t end, const RowScratch& scratch, RowTotals& totals) {
  const MergeQuantizeParams& p = *task.params;
  constexpr int64_t kStrip = kTileVectors * kLane;
  for (int64_t column0 = 0, panel = 0; column0 < p.columns; column0 += task.panel, ++panel) {
    const int64_t columns = p.columns - column0 < task.panel ? p.columns - column0 : task.panel;
    const float* a = task.a_panels + panel * p.rank * task.panel_pad;
    for (int64_t row0 = begin; row0 < end; row0 += kTileRows) {
      const int64_t rows = end - row0 < kTileRows ? end - row0 : kTileRows;
      if (p.rank > 0) {
        const float* b[kTileRows];
        for (int i = 0; i < kTileRows; ++i) b[i] = task.b + (i < rows ? row0 + i : end - 1) * p.rank;
        for (int64_t j = 0; j < columns; j += kStrip) {
          product_tile<kTileVectors>(a + j, task.panel_pad, b, p.rank, scratch.merged + j, task.panel_pad);
        }
      }
      const bool last = row0 + kTileRows >= end;
      NextTile next{last ? begin : row0 + kTileRows, 0, last ? column0 + task.panel : column0, 0};
      if (next.column < p.columns) {
        next.rows = end - next.row < kTileRows ? end - next.row : kTileRows;
        next.columns = p.columns - next.column < task.panel ? p.columns - next.column : task.panel;
      }
      finish_tile<kType, kSymmetric>(task, row0, rows, column0, columns, next, scratch, totals);
    }
  }
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
