// merge_quantize on the GPU, exact path: the same float32 FMA order as the CPU, so codes, scales and counts are equal.
//
// Fused kernel (groups of 8, 16, ..., 256; rows a multiple of 8):
//
//   block = 8 warps, owns 64 rows x 256 columns        lane = 8 neighbouring columns of 8 rows of its warp
//     A chunk (32 x 256 float32) and B chunk (64 x 32) staged in shared memory, read once per block from L2
//     64 accumulators a lane; per k: 2 + 2 LDS.128 for 64 FMA; the products then pass through shared memory
//     then row by row: weight (one 16-byte load a lane, prefetched to L2 at the start) -> merge -> range over the
//     group's lanes by shuffles -> three codes a weight -> one packed word a lane (4 bits)
//   weight read once, codes and scales written once; integer counts by atomics (order cannot show), float sums per lane
//   in float32 within a row's piece of a group, in float64 beyond, block partials added in block order by a last
//   kernel.
//
// Any other shape takes four plain kernels with the merged weight and the codes in memory between them.
//
// What limits it, per weight, at rank r and 4 bits in groups of 128, bfloat16:
//   bytes        2 (weight) + 0.5 (codes) + 4/128 (scales)                                   = 2.53
//   FMA          r
//   issue slots  r (FMA) + r/16 (shared loads) + E, where E is the epilogue
// A streaming multiprocessor issues 4 warp instructions a cycle, one of 32 weights each, FMA among them. With E near
// 100 issue slots bind at every rank: bandwidth would bind only below about 18 slots a weight on an H200 (4.8 TB/s, 132
// multiprocessors at 1.98 GHz: 33.4e12 slots/s against 1.9e12 weights/s). That E is an estimate from the source; it is
// not counted from SASS, and nothing in this file has been run or timed on a GPU yet.
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "merge_quantize_cuda.h"

namespace qru {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kPerLane = 8;
constexpr int kTileColumns = 32 * kPerLane;
constexpr int kRowsPerWarp = 8;
constexpr int kTileRows = kWarps * kRowsPerWarp;
constexpr int kChunk = 32;               // ranks staged at a time
constexpr int kBStride = kTileRows + 4;  // keeps 16-byte alignment, spreads the stores over banks
constexpr int kStagedBytes = kTileRows * kTileColumns * 4;
static_assert((kChunk * kTileColumns + kChunk * kBStride) * 4 <= kStagedBytes, "chunks and products share memory");
constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23
constexpr float kSnap = 1536.0f;         // 1.5 * 2^10: rounds |x| < 2^9 to a multiple of 2^-13
constexpr int kRounderBits = 0x4b400000;
constexpr float kSmallStep = 8.6736174e-19f;  // 2^-60
constexpr float kLargeStep = 1.1529215e18f;   // 2^60
constexpr unsigned kAll = 0xffffffffu;

__device__ __forceinline__ float element(const void* p, int dtype, int64_t i) {
  if (dtype == kFloat32) return __ldg(static_cast<const float*>(p) + i);
  const uint16_t h = __ldg(static_cast<const uint16_t*>(p) + i);
  return dtype == kBFloat16 ? bfloat16_to_float(h) : __half2float(__ushort_as_half(h));
}

template <int kType>
__device__ __forceinline__ float rounded(float x) {
  if constexpr (kType == kBFloat16) return bfloat16_to_float(float_to_bfloat16(x));
  if constexpr (kType == kFloat16) return __half2float(__float2half_rn(x));
  return x;
}

template <int kType>
__device__ __forceinline__ void load_eight(const void* p, int64_t i, float* out) {
  if constexpr (kType == kFloat32) {
    const float4* from = reinterpret_cast<const float4*>(static_cast<const float*>(p) + i);
    const float4 a = __ldg(from), b = __ldg(from + 1);
    out[0] = a.x, out[1] = a.y, out[2] = a.z, out[3] = a.w;
    out[4] = b.x, out[5] = b.y, out[6] = b.z, out[7] = b.w;
  } else {
    const uint4 v = __ldg(reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(p) + i));
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if constexpr (kType == kBFloat16) {
        out[2 * j] = float_of(words[j] << 16);
        out[2 * j + 1] = float_of(words[j] & 0xffff0000u);
      } else {
        out[2 * j] = __half2float(__ushort_as_half(static_cast<uint16_t>(words[j])));
        out[2 * j + 1] = __half2float(__ushort_as_half(static_cast<uint16_t>(words[j] >> 16)));
      }
    }
  }
}

template <int kType>
__device__ __forceinline__ void store_eight(void* p, int64_t i, const float* x) {
  if constexpr (kType == kFloat32) {
    float4* to = reinterpret_cast<float4*>(static_cast<float*>(p) + i);
    to[0] = make_float4(x[0], x[1], x[2], x[3]);
    to[1] = make_float4(x[4], x[5], x[6], x[7]);
  } else {
    uint32_t words[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if constexpr (kType == kBFloat16) {
        words[j] = (bits_of(x[2 * j]) >> 16) | (bits_of(x[2 * j + 1]) & 0xffff0000u);
      } else {
        words[j] = static_cast<uint32_t>(__half_as_ushort(__float2half_rn(x[2 * j]))) |
                   static_cast<uint32_t>(__half_as_ushort(__float2half_rn(x[2 * j + 1]))) << 16;
      }
    }
    *reinterpret_cast<uint4*>(static_cast<uint16_t*>(p) + i) = make_uint4(words[0], words[1], words[2], words[3]);
  }
}

enum Path : int { kShort, kReciprocal, kDivision };

// Reciprocals and path of a pair of grids; the reasons are in cpu_rows.cpp.
struct Grids {
  Grid before, after;
  float reciprocal_before, reciprocal_after;
  int path;
};

__device__ __forceinline__ bool is_usual(float step) {
  return step == 0.0f || (step >= kSmallStep && step <= kLargeStep);
}

__device__ __forceinline__ Grids grids_of(const Grid& before, const Grid& after, const GridRule& rule, int dtype) {
  Grids g{before, after, 0.0f, 0.0f, kReciprocal};
  if (before.step > 0.0f) g.reciprocal_before = __frcp_rn(before.step);
  if (after.step > 0.0f) g.reciprocal_after = __frcp_rn(after.step);
  const uint32_t tail = dtype == kBFloat16 ? 0xffffu : 0x1fffu;
  if (!is_usual(before.step) || !is_usual(after.step)) {
    g.path = kDivision;
  } else if (rule.symmetric && dtype != kFloat32 && ((bits_of(before.step) | bits_of(after.step)) & tail) == 0) {
    g.path = kShort;
  }
  return g;
}

// Out of line: rare, and inlined a few dozen times it would be most of the kernel.
__device__ __noinline__ float level_by_division(float w, float step, float low, float high) {
  return level_of(w, Grid{step, 0.0f, low, high});
}

__device__ __forceinline__ float level_by(float w, const Grid& grid, float reciprocal, int path, float near_tie) {
  if (path == kDivision) return level_by_division(w, grid.step, grid.low, grid.high);
  const float t = fminf(fmaxf(__fmul_rn(w, reciprocal), grid.low), grid.high);
  if (path == kShort) return __fsub_rn(__fadd_rn(__fadd_rn(t, kSnap), kRounder - kSnap), kRounder);
  const float n = __fsub_rn(__fadd_rn(t, kRounder), kRounder);
  if (path == kReciprocal && fabsf(__fsub_rn(t, n)) > near_tie) {
    return level_by_division(w, grid.step, grid.low, grid.high);
  }
  return n;
}

// What one lane counts and adds up.
struct Tally {
  int crossed, changed, moved, ones, steps_moved, zero_groups;
  double sums[kSums];
};

// The floats of one lane within one group.
struct Span {
  float within, dw2, qdw, q2;
};

// Codes of one weight; returns the stored code and adds to the tallies.
__device__ __forceinline__ int quantize_one(float w, float m, const Grids& g, float near_tie, int bins, Tally& tally,
                                            Span& span, int* histogram) {
  const float n0 = level_by(w, g.before, g.reciprocal_before, g.path, near_tie);
  const float nf = level_by(m, g.before, g.reciprocal_before, g.path, near_tie);
  const float n1 = level_by(m, g.after, g.reciprocal_after, g.path, near_tie);
  const int before = static_cast<int>(bits_of(n0 + g.before.zero + kRounder)) - kRounderBits;
  const int after = static_cast<int>(bits_of(n1 + g.after.zero + kRounder)) - kRounderBits;
  const float dw = __fsub_rn(m, w);
  const float delta = __fsub_rn(__fmul_rn(n1, g.after.step), __fmul_rn(n0, g.before.step));
  const int jump = abs(after - before);
  tally.crossed += nf != n0;
  tally.changed += jump != 0;
  tally.ones += jump == 1;
  if (jump > 1) atomicAdd(histogram + min(jump, bins - 1), 1);
  tally.moved += dw != 0.0f;
  if (g.path == kDivision) {
    if (g.before.step > 0.0f) tally.sums[0] += fminf(__fdiv_rn(fabsf(dw), g.before.step), 1.0f);
    tally.sums[1] += __fmul_rn(dw, dw);
    tally.sums[2] += __fmul_rn(delta, dw);
    tally.sums[3] += __fmul_rn(delta, delta);
  } else {
    span.within += fminf(fabsf(dw), g.before.step);
    span.dw2 = __fmaf_rn(dw, dw, span.dw2);
    span.qdw = __fmaf_rn(delta, dw, span.qdw);
    span.q2 = __fmaf_rn(delta, delta, span.q2);
  }
  return after;
}

__device__ __forceinline__ void add_span(Tally& tally, const Span& span, const Grids& g) {
  tally.sums[0] += __fmul_rn(span.within, g.reciprocal_before);
  tally.sums[1] += span.dw2;
  tally.sums[2] += span.qdw;
  tally.sums[3] += span.q2;
}

// Block totals: counts to global atomics, sums to this block's own place.
__device__ void finish_block(const Tally& tally, const int* histogram, const MergeQuantizeParams& p,
                             const CudaScratch& scratch, bool count_groups) {
  __shared__ double block_sums[kWarps][kSums];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int counts[6] = {tally.crossed, tally.changed, tally.moved, tally.steps_moved, tally.zero_groups, tally.ones};
  unsigned long long* totals = reinterpret_cast<unsigned long long*>(p.counts);
#pragma unroll
  for (int i = 0; i < 6; ++i) {
    const int sum = __reduce_add_sync(kAll, counts[i]);
    const int place = i < kCounts ? i : kCounts + 1;
    const bool skip = !count_groups && (i == 3 || i == 4);
    if (lane == 0 && sum != 0 && !skip) atomicAdd(totals + place, static_cast<unsigned long long>(sum));
  }
#pragma unroll
  for (int i = 0; i < kSums; ++i) {
    double x = tally.sums[i];
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) x += __shfl_down_sync(kAll, x, offset);
    if (lane == 0) block_sums[warp][i] = x;
  }
  __syncthreads();
  if (threadIdx.x < kSums) {
    double x = 0.0;
    for (int w = 0; w < kWarps; ++w) x += block_sums[w][threadIdx.x];
    scratch.partials[static_cast<int64_t>(blockIdx.x) * kSums + threadIdx.x] = x;
  }
  const int bins = 1 << p.rule.bits;
  for (int i = threadIdx.x; i < bins; i += kThreads)
    if (histogram[i] != 0) atomicAdd(totals + kCounts + i, static_cast<unsigned long long>(histogram[i]));
}

__device__ __forceinline__ void note_fault(unsigned long long* fault, int64_t row) {
  atomicMin(fault, static_cast<unsigned long long>(row));
}

template <int kType, bool kSymmetric>
__global__ void __launch_bounds__(kThreads, 2) fused(const MergeQuantizeParams p, const CudaScratch scratch) {
  extern __shared__ __align__(16) float staged[];
  __shared__ int histogram[256];
  float* const a_chunk = staged;                          // [k][half][lane][4]
  float* const b_chunk = staged + kChunk * kTileColumns;  // [k][row]
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t column_tiles = (p.columns + kTileColumns - 1) / kTileColumns;
  const int64_t column0 = static_cast<int64_t>(blockIdx.x) % column_tiles * kTileColumns;
  const int64_t row0 = static_cast<int64_t>(blockIdx.x) / column_tiles * kTileRows;
  const int64_t column = column0 + lane * kPerLane;
  const int64_t first_row = row0 + warp * kRowsPerWarp;
  const bool inside = column < p.columns;
  for (int i = threadIdx.x; i < 256; i += kThreads) histogram[i] = 0;

  const int size = kType == kFloat32 ? 4 : 2;
  if (inside) {
#pragma unroll
    for (int i = 0; i < kRowsPerWarp; ++i) {
      if (first_row + i >= p.rows) break;
      const char* at = static_cast<const char*>(p.weight) + ((first_row + i) * p.columns + column) * size;
      asm volatile("prefetch.global.L2 [%0];" ::"l"(at));
    }
  }

  // The products leave the registers for this warp's part of the staging memory, so that the epilogue is a loop over
  // rows and not eight copies of itself (which spilled). Each lane reads back what it wrote.
  float4* const products = reinterpret_cast<float4*>(staged) + warp * kRowsPerWarp * 64;
  if (p.rank > 0) {
    float acc[kRowsPerWarp][kPerLane];
#pragma unroll
    for (int i = 0; i < kRowsPerWarp; ++i)
#pragma unroll
      for (int j = 0; j < kPerLane; ++j) acc[i][j] = 0.0f;

    for (int64_t k0 = 0; k0 < p.rank; k0 += kChunk) {
      const int ranks = p.rank - k0 < kChunk ? static_cast<int>(p.rank - k0) : kChunk;
      __syncthreads();
      {
        const int c = threadIdx.x;  // one column of A a thread
        const int place = (c % kPerLane) / 4 * 128 + c / kPerLane * 4 + c % 4;
        const bool valid = column0 + c < p.columns;
#pragma unroll 8
        for (int k = 0; k < ranks; ++k) {
          a_chunk[k * kTileColumns + place] =
              valid ? element(p.lora_a, p.a_dtype, (k0 + k) * p.columns + column0 + c) : 0.0f;
        }
        for (int i = threadIdx.x; i < kTileRows * ranks; i += kThreads) {
          const int r = i / ranks, k = i % ranks;
          b_chunk[k * kBStride + r] =
              row0 + r < p.rows ? element(p.lora_b, p.b_dtype, (row0 + r) * p.rank + k0 + k) : 0.0f;
        }
      }
      __syncthreads();
#pragma unroll 2
      for (int k = 0; k < ranks; ++k) {
        const float4* a4 = reinterpret_cast<const float4*>(a_chunk + k * kTileColumns);
        const float4* b4 = reinterpret_cast<const float4*>(b_chunk + k * kBStride + warp * kRowsPerWarp);
        const float4 a_low = a4[lane], a_high = a4[32 + lane], b_low = b4[0], b_high = b4[1];
        const float a[kPerLane] = {a_low.x, a_low.y, a_low.z, a_low.w, a_high.x, a_high.y, a_high.z, a_high.w};
        const float b[kRowsPerWarp] = {b_low.x, b_low.y, b_low.z, b_low.w, b_high.x, b_high.y, b_high.z, b_high.w};
#pragma unroll
        for (int i = 0; i < kRowsPerWarp; ++i)
#pragma unroll
          for (int j = 0; j < kPerLane; ++j) acc[i][j] = __fmaf_rn(b[i], a[j], acc[i][j]);
      }
    }
    __syncthreads();  // every warp is done with the chunk
#pragma unroll
    for (int i = 0; i < kRowsPerWarp; ++i) {
      products[i * 64 + lane] = make_float4(acc[i][0], acc[i][1], acc[i][2], acc[i][3]);
      products[i * 64 + 32 + lane] = make_float4(acc[i][4], acc[i][5], acc[i][6], acc[i][7]);
    }
  }
  __syncthreads();

  Tally tally{};
  const int lanes_per_group = static_cast<int>(p.group) / kPerLane;
  const float near_tie = p.rule.bits == 8 ? 0.5f - 1.2207031e-4f : 0.5f - 1.5258789e-5f;
  const int bins = 1 << p.rule.bits, half = bins / 2;
#pragma unroll 1
  for (int i = 0; i < kRowsPerWarp; ++i) {
    const int64_t row = first_row + i;
    if (row >= p.rows) break;  // the same for the whole warp
    float w[kPerLane], m[kPerLane];
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) w[j] = m[j] = 0.0f;
    if (inside) {
      load_eight<kType>(p.weight, row * p.columns + column, w);
      if (p.new_weight != nullptr) load_eight<kType>(p.new_weight, row * p.columns + column, m);
    }
    if (p.rank > 0) {
      const float4 low = products[i * 64 + lane], high = products[i * 64 + 32 + lane];
      const float acc[kPerLane] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
      for (int j = 0; j < kPerLane; ++j) m[j] = inside ? rounded<kType>(__fmaf_rn(p.scaling, acc[j], w[j])) : 0.0f;
    } else if (p.new_weight == nullptr) {
#pragma unroll
      for (int j = 0; j < kPerLane; ++j) m[j] = w[j];
    }
    uint32_t top0 = 0, top1 = 0;
    float lo0 = 0.0f, hi0 = 0.0f, lo1 = 0.0f, hi1 = 0.0f;
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) {
      top0 = max(top0, bits_of(w[j]) & ~kSignBit);
      top1 = max(top1, bits_of(m[j]) & ~kSignBit);
      if constexpr (!kSymmetric) {
        lo0 = fminf(lo0, w[j]), hi0 = fmaxf(hi0, w[j]);
        lo1 = fminf(lo1, m[j]), hi1 = fmaxf(hi1, m[j]);
      }
    }
    for (int offset = 1; offset < lanes_per_group; offset *= 2) {
      top0 = max(top0, __shfl_xor_sync(kAll, top0, offset));
      top1 = max(top1, __shfl_xor_sync(kAll, top1, offset));
      if constexpr (!kSymmetric) {
        lo0 = fminf(lo0, __shfl_xor_sync(kAll, lo0, offset)), hi0 = fmaxf(hi0, __shfl_xor_sync(kAll, hi0, offset));
        lo1 = fminf(lo1, __shfl_xor_sync(kAll, lo1, offset)), hi1 = fmaxf(hi1, __shfl_xor_sync(kAll, hi1, offset));
      }
    }
    if (!inside) continue;  // no shuffles below
    if (top0 >= kInfBits || top1 >= kInfBits) {
      note_fault(scratch.faults, row);
      continue;
    }
    if constexpr (kSymmetric) hi0 = float_of(top0), hi1 = float_of(top1);
    const Grid before = grid_of_range(lo0, hi0, p.rule), after = grid_of_range(lo1, hi1, p.rule);
    if (bits_of(before.step) >= kInfBits || bits_of(after.step) >= kInfBits) {
      note_fault(scratch.faults + 1, row);
      continue;
    }
    const Grids g = grids_of(before, after, p.rule, kType);
    if (lane % lanes_per_group == 0) {
      const int64_t index = row * (p.columns / p.group) + column / p.group;
      p.scales[index] = after.step;
      if (p.zeros != nullptr) p.zeros[index] = after.zero;
      tally.steps_moved += before.step != after.step;
      tally.zero_groups += before.step == 0.0f;
    }
    Span span{};
    int codes[kPerLane];
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) codes[j] = quantize_one(w[j], m[j], g, near_tie, bins, tally, span, histogram);
    add_span(tally, span, g);
    if (p.merged != nullptr) store_eight<kType>(p.merged, row * p.columns + column, m);
    char* out = static_cast<char*>(p.packed) + row * p.packed_stride;
    if (p.rule.bits == 4) {
      uint32_t word = 0;
#pragma unroll
      for (int j = 0; j < kPerLane; ++j) word |= static_cast<uint32_t>(codes[j] + half) << (4 * j);
      reinterpret_cast<uint32_t*>(out)[column / 8] = word;
    } else if (p.rule.bits == 2) {
      uint32_t word = 0;
#pragma unroll
      for (int j = 0; j < kPerLane; ++j) word |= static_cast<uint32_t>(codes[j] + half) << (2 * j);
      reinterpret_cast<uint16_t*>(out)[column / 8] = static_cast<uint16_t>(word);
      // A row of 8 (mod 16) columns ends in half a word; its other half is padding.
      if (column + kPerLane == p.columns && column / 8 % 2 == 0) {
        reinterpret_cast<uint16_t*>(out)[column / 8 + 1] = 0;
      }
    } else {
      const int offset = p.rule.bits == 8 ? half : 0;
      uint32_t low = 0, high = 0;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        low |= (static_cast<uint32_t>(codes[j] + offset) & 0xffu) << (8 * j);
        high |= (static_cast<uint32_t>(codes[j + 4] + offset) & 0xffu) << (8 * j);
      }
      reinterpret_cast<uint2*>(out)[column / 8] = make_uint2(low, high);
    }
  }
  __syncthreads();
  finish_block(tally, histogram, p, scratch, true);
}

// ---- any other shape ------------------------------------------------------------------------------------------------

__global__ void __launch_bounds__(kThreads) merge_all(const MergeQuantizeParams p) {
  const int64_t count = p.rows * p.columns, stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += stride) {
    const int64_t row = i / p.columns, column = i % p.columns;
    float acc = 0.0f;
    for (int64_t k = 0; k < p.rank; ++k) {
      acc = __fmaf_rn(element(p.lora_b, p.b_dtype, row * p.rank + k),
                      element(p.lora_a, p.a_dtype, k * p.columns + column), acc);
    }
    const float merged = __fmaf_rn(p.scaling, acc, element(p.weight, p.weight_dtype, i));
    if (p.weight_dtype == kFloat32) static_cast<float*>(p.merged)[i] = merged;
    if (p.weight_dtype == kBFloat16) static_cast<uint16_t*>(p.merged)[i] = float_to_bfloat16(merged);
    if (p.weight_dtype == kFloat16) {
      static_cast<uint16_t*>(p.merged)[i] = __half_as_ushort(__float2half_rn(merged));
    }
  }
}

struct WarpRange {
  uint32_t low, high, top;  // magnitude bits of the smallest and largest weight, and of the largest in magnitude
};

__device__ __forceinline__ WarpRange range_of(const void* x, int dtype, int64_t from, int64_t width) {
  WarpRange r{0, 0, 0};
  for (int64_t j = threadIdx.x % 32; j < width; j += 32) {
    const uint32_t bits = bits_of(element(x, dtype, from + j));
    const uint32_t size = bits & ~kSignBit;
    r.top = max(r.top, size);
    if (bits & kSignBit) {
      r.low = max(r.low, size);
    } else {
      r.high = max(r.high, size);
    }
  }
  r.low = __reduce_max_sync(kAll, r.low);
  r.high = __reduce_max_sync(kAll, r.high);
  r.top = __reduce_max_sync(kAll, r.top);
  return r;
}

__device__ __forceinline__ Grid grid_of_bits(uint32_t low, uint32_t high, const GridRule& rule) {
  return grid_of_range(-float_of(low), float_of(high), rule);
}

// One warp a row: the range of the whole matrix, before and after.
__global__ void __launch_bounds__(kThreads)
    tensor_range(const MergeQuantizeParams p, const CudaScratch scratch, const void* after) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (row >= p.rows) return;
  const WarpRange r0 = range_of(p.weight, p.weight_dtype, row * p.columns, p.columns);
  const WarpRange r1 = range_of(after, p.weight_dtype, row * p.columns, p.columns);
  if (threadIdx.x % 32 != 0) return;
  if (r0.top >= kInfBits || r1.top >= kInfBits) note_fault(scratch.faults, row);
  atomicMax(scratch.range + 0, r0.low);
  atomicMax(scratch.range + 1, r0.high);
  atomicMax(scratch.range + 2, r1.low);
  atomicMax(scratch.range + 3, r1.high);
}

// One warp a group: range, codes, counts.
__global__ void __launch_bounds__(kThreads)
    quantize_groups(const MergeQuantizeParams p, const CudaScratch scratch, const void* after) {
  __shared__ int histogram[256];
  for (int i = threadIdx.x; i < 256; i += kThreads) histogram[i] = 0;
  __syncthreads();
  const int lane = threadIdx.x % 32;
  const int64_t group = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int64_t groups = p.rows * (p.columns / p.group);
  const float near_tie = p.rule.bits == 8 ? 0.5f - 1.2207031e-4f : 0.5f - 1.5258789e-5f;
  Tally tally{};
  if (group < groups) {
    const int64_t from = group * p.group, row = from / p.columns;
    Grid g0, g1;
    bool usable = true;
    if (p.per_tensor) {
      g0 = grid_of_bits(scratch.range[0], scratch.range[1], p.rule);
      g1 = grid_of_bits(scratch.range[2], scratch.range[3], p.rule);
    } else {
      const WarpRange r0 = range_of(p.weight, p.weight_dtype, from, p.group);
      const WarpRange r1 = range_of(after, p.weight_dtype, from, p.group);
      usable = r0.top < kInfBits && r1.top < kInfBits;
      if (!usable && lane == 0) note_fault(scratch.faults, row);
      g0 = grid_of_bits(r0.low, r0.high, p.rule);
      g1 = grid_of_bits(r1.low, r1.high, p.rule);
    }
    if (usable && (bits_of(g0.step) >= kInfBits || bits_of(g1.step) >= kInfBits)) {
      usable = false;
      if (lane == 0) note_fault(scratch.faults + 1, row);
    }
    if (usable) {
      const Grids g = grids_of(g0, g1, p.rule, p.weight_dtype);
      if (lane == 0 && (!p.per_tensor || group == 0)) {
        p.scales[p.per_tensor ? 0 : group] = g1.step;
        if (p.zeros != nullptr) p.zeros[p.per_tensor ? 0 : group] = g1.zero;
        tally.steps_moved = g0.step != g1.step;
        tally.zero_groups = g0.step == 0.0f;
      }
      for (int64_t j0 = 0; j0 < p.group; j0 += 32 * 16) {  // spans short enough for float32
        Span span{};
        for (int64_t j = j0 + lane; j < j0 + 32 * 16 && j < p.group; j += 32) {
          const float w = element(p.weight, p.weight_dtype, from + j), m = element(after, p.weight_dtype, from + j);
          scratch.codes[from + j] =
              static_cast<int8_t>(quantize_one(w, m, g, near_tie, 1 << p.rule.bits, tally, span, histogram));
        }
        add_span(tally, span, g);
      }
    }
  }
  __syncthreads();
  finish_block(tally, histogram, p, scratch, true);
}

// One thread a byte of a packed row.
__global__ void __launch_bounds__(kThreads) pack_all(const MergeQuantizeParams p, const int8_t* codes) {
  const int bits = p.rule.bits, per_byte = 8 / bits, half = 1 << (bits - 1);
  const int64_t count = p.rows * p.packed_stride, stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += stride) {
    const int64_t row = i / p.packed_stride, first = i % p.packed_stride * per_byte;
    uint32_t byte = 0;
    for (int j = 0; j < per_byte && first + j < p.columns; ++j)
      byte |= (static_cast<uint32_t>(codes[row * p.columns + first + j] + half) & 0xffu) << (bits * j);
    static_cast<uint8_t*>(p.packed)[i] = static_cast<uint8_t>(byte);
  }
}

// Block partials in a fixed order, and the histogram's first bin. One block of 128 threads, 32 a sum.
__global__ void finish(const MergeQuantizeParams p, const CudaScratch scratch, int64_t blocks) {
  const int sum = threadIdx.x / 32, lane = threadIdx.x % 32;
  double x = 0.0;
  for (int64_t i = lane; i < blocks; i += 32) x += scratch.partials[i * kSums + sum];
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_down_sync(kAll, x, offset);
  if (lane == 0) p.sums[sum] = x;
  if (threadIdx.x == 0) p.counts[kCounts] = p.rows * p.columns - p.counts[1];
}

template <int kType, bool kSymmetric>
cudaError_t launch_fused(const MergeQuantizeParams& p, const CudaScratch& scratch, int64_t blocks,
                         cudaStream_t stream) {
  const int bytes = p.rank > 0 ? kStagedBytes : 16;
  const cudaError_t error =
      cudaFuncSetAttribute(fused<kType, kSymmetric>, cudaFuncAttributeMaxDynamicSharedMemorySize, kStagedBytes);
  if (error != cudaSuccess) return error;
  fused<kType, kSymmetric><<<static_cast<unsigned>(blocks), kThreads, bytes, stream>>>(p, scratch);
  return cudaGetLastError();
}

int64_t fused_blocks(const MergeQuantizeParams& p) {
  return (p.rows + kTileRows - 1) / kTileRows * ((p.columns + kTileColumns - 1) / kTileColumns);
}

int64_t group_blocks(const MergeQuantizeParams& p) { return (p.rows * (p.columns / p.group) + kWarps - 1) / kWarps; }

}  // namespace

bool cuda_is_fused(const MergeQuantizeParams& p) {
  const bool power = p.group >= kPerLane && p.group <= kTileColumns && (p.group & (p.group - 1)) == 0;
  return power && !p.per_tensor && p.columns % kPerLane == 0;
}

int64_t cuda_blocks(const MergeQuantizeParams& p) { return cuda_is_fused(p) ? fused_blocks(p) : group_blocks(p); }

const char* merge_quantize_cuda(const MergeQuantizeParams& p, const CudaScratch& scratch, void* stream_handle) {
  cudaStream_t stream = static_cast<cudaStream_t>(stream_handle);
  const int64_t blocks = cuda_blocks(p);
  if (blocks > 0x7fffffff) return "the matrix needs more blocks than one launch has";
  cudaError_t error = cudaSuccess;
  if (cuda_is_fused(p)) {
    const int symmetric = p.rule.symmetric;
    switch (p.weight_dtype) {
      case kFloat32:
        error = symmetric ? launch_fused<kFloat32, true>(p, scratch, blocks, stream)
                          : launch_fused<kFloat32, false>(p, scratch, blocks, stream);
        break;
      case kBFloat16:
        error = symmetric ? launch_fused<kBFloat16, true>(p, scratch, blocks, stream)
                          : launch_fused<kBFloat16, false>(p, scratch, blocks, stream);
        break;
      default:
        error = symmetric ? launch_fused<kFloat16, true>(p, scratch, blocks, stream)
                          : launch_fused<kFloat16, false>(p, scratch, blocks, stream);
    }
  } else {
    const unsigned many = 4096;
    const void* after = p.new_weight != nullptr ? p.new_weight : p.weight;
    if (p.rank > 0) {
      merge_all<<<many, kThreads, 0, stream>>>(p);
      after = p.merged;
    } else if (p.merged != nullptr) {
      const int64_t size = p.weight_dtype == kFloat32 ? 4 : 2;
      error = cudaMemcpyAsync(p.merged, after, static_cast<size_t>(p.rows * p.columns * size), cudaMemcpyDeviceToDevice,
                              stream);
      if (error != cudaSuccess) return cudaGetErrorString(error);
    }
    if (p.per_tensor) {
      const unsigned row_blocks = static_cast<unsigned>((p.rows + kWarps - 1) / kWarps);
      tensor_range<<<row_blocks, kThreads, 0, stream>>>(p, scratch, after);
    }
    quantize_groups<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(p, scratch, after);
    if (p.rule.bits != 3) pack_all<<<many, kThreads, 0, stream>>>(p, scratch.codes);
    error = cudaGetLastError();
  }
  if (error != cudaSuccess) return cudaGetErrorString(error);
  finish<<<1, 32 * kSums, 0, stream>>>(p, scratch, blocks);
  error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace qru
