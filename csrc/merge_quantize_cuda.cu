// merge_quantize on the GPU. Exact path: the same float32 FMA order as the CPU, so codes, scales and counts are equal.
// Tensor-core path, by name: split bfloat16 products (see tensor_product), the rest as exact as ever.
//
// Fused kernel (groups of 8, 16, ..., 256; rows a multiple of 8):
//
//   block = 8 warps, owns 64 rows x 256 columns        lane = 8 neighbouring columns of 8 rows of its warp
//     B A of the tile: chunks of 32 ranks of A and B staged in shared memory, sums in registers, then shared memory
//     merge, rows of a warp in turn: product + weight (one 16-byte load a lane) -> rounded; range over the group's
//       lanes by shuffles, the merged and the plain weight's in one; both stay in shared memory as stored
//     grids: a lane takes one whole grid (up to 32 groups, before and after), so that its divisions are done once
//     codes, row by row: three a weight, as bytes four to a word -> counts, sums, one packed word a lane (4 bits)
//   weight read once, codes and scales written once; integer counts by atomics (order cannot show), float sums per lane
//   in float32 within a row's piece of a group, in float64 beyond, block partials added in block order by a last
//   kernel.
//
// Any other shape: the same product, merged weight written out; then plain kernels, one warp a group.
//
// Without counts only the merged weight's grid and codes are taken; `dequantized` then leaves instead of codes.
//
// What limits it, per weight, at rank r: bfloat16, 4 bits, groups of 128, symmetric, an adapter, codes that move by at
// most one. Issue slots are warp instructions for 32 weights, counted with sass_count.py in what nvcc 13.0 makes of
// fused<1, true, true> for sm_90: the basic blocks that a row of 8 weights a lane passes.
//   bytes        2 (weight) + 0.5 (codes) + 4/128 (scales)                             = 2.53
//   epilogue     merge and range 106/8, codes and counts 290/8, grids and rest ~260/64 = 54 slots, 20 of them ALU
//   exact        r FMA, 144 instructions for 2 ranks of 64 weights                     = 1.125 r slots
//   tensor-core  96 HMMA, 108 LDS, 64 FADD, 343 in all for 16 ranks of 64 weights      = 0.335 r slots
// Staging A and B is left out (a block loads an element of A once for its 64 rows). An H200 (132 multiprocessors at
// 1.98 GHz, 4 slots a cycle, 4.8 TB/s) has 33.4e12 slots and 1.9e12 weights' bytes a second. Ceiling in 1e12 weights a
// second, and microseconds for 4096 x 4096 (for 11008 x 4096 and its transpose, 2.69 times that):
//   rank             16            64           128
//   exact        0.46, 36 us   0.27, 63 us   0.17, 100 us
//   tensor-core  0.56, 30 us   0.44, 38 us   0.34, 49 us
// Issue slots bind in every case; bandwidth would at 18 a weight. Half-rate ALU instructions take 40 of a possible 54
// and the tensor cores, at 3.2 cycles an HMMA, 0.3 r, so neither binds before. These are ceilings from instruction
// counts: nothing in this file has been run or timed on a GPU yet.
#include <algorithm>
#include <type_traits>

#include "cuda_device.h"
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
// A row of products: columns 0-3 of every lane, then columns 4-7, each padded so that neither the lanes of an epilogue
// load nor those of a tensor-core store meet in a bank.
constexpr int kHighHalf = 4 * 32 + 4;
constexpr int kProductStride = 2 * kHighHalf;
// Split operands: [term][pair of ranks][column or row], one word a pair.
constexpr int kTerms = 3;
constexpr int kPairs = kChunk / 2;
constexpr int kASplitStride = kTileColumns + 8;
constexpr int kBSplitStride = kTileRows + 8;
constexpr int kStagedBytes = kTileRows * kProductStride * 4;
static_assert((kChunk * kTileColumns + kChunk * kBStride) * 4 <= kStagedBytes, "chunks and products share memory");
static_assert(kTerms * kPairs * (kASplitStride + kBSplitStride) * 4 <= kStagedBytes, "and so do split chunks");
constexpr int kEntries = 32;  // groups of a warp whose grids are taken together

constexpr float kRounder = 12582912.0f;       // 1.5 * 2^23: adding it rounds to a whole number, half to even
constexpr float kSnap = 1536.0f;              // 1.5 * 2^10: rounds |x| < 2^9 to a multiple of 2^-13
constexpr float kSmallStep = 8.6736174e-19f;  // 2^-60
constexpr float kLargeStep = 1.1258999e15f;   // 2^50: 16 squares of 2 * 256 steps are far below float32's end
constexpr float kLargeSplit = 1.1529215e18f;  // 2^60

__device__ __forceinline__ float element(const void* p, int dtype, int64_t i) {
  if (dtype == kFloat32) return __ldg(static_cast<const float*>(p) + i);
  const uint16_t h = __ldg(static_cast<const uint16_t*>(p) + i);
  return dtype == kBFloat16 ? bfloat16_to_float(h) : half_bits_to_float(h);
}

// Calls `body` with the type as a constant, so that loops over elements do not ask for it again.
template <typename Body>
__device__ __forceinline__ void with_type(int dtype, const Body& body) {
  if (dtype == kFloat32) {
    body(std::integral_constant<int, kFloat32>{});
  } else if (dtype == kBFloat16) {
    body(std::integral_constant<int, kBFloat16>{});
  } else {
    body(std::integral_constant<int, kFloat16>{});
  }
}

__device__ __forceinline__ void set_element(void* p, int dtype, int64_t i, float x) {
  if (dtype == kFloat32) static_cast<float*>(p)[i] = x;
  if (dtype == kBFloat16) static_cast<uint16_t*>(p)[i] = static_cast<uint16_t>(rounded_pair<kBFloat16>(x, 0.0f));
  if (dtype == kFloat16) static_cast<uint16_t*>(p)[i] = static_cast<uint16_t>(rounded_pair<kFloat16>(x, 0.0f));
}

// Eight neighbouring weights of a row as they are stored.
template <int kType>
struct Eight {
  uint32_t words[4];
  __device__ __forceinline__ float get(int j) const {
    const uint32_t word = words[j / 2];
    if constexpr (kType == kBFloat16) return float_of(j % 2 == 0 ? word << 16 : word & 0xffff0000u);
    return half_bits_to_float(static_cast<uint16_t>(j % 2 == 0 ? word : word >> 16));
  }
  __device__ __forceinline__ void set(const float* x) {
#pragma unroll
    for (int j = 0; j < 4; ++j) words[j] = rounded_pair<kType>(x[2 * j], x[2 * j + 1]);
  }
  __device__ __forceinline__ void load(const void* p, int64_t i) {
    const uint4 v = __ldg(reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(p) + i));
    words[0] = v.x, words[1] = v.y, words[2] = v.z, words[3] = v.w;
  }
  __device__ __forceinline__ void store(void* p, int64_t i) const {
    *reinterpret_cast<uint4*>(static_cast<uint16_t*>(p) + i) = make_uint4(words[0], words[1], words[2], words[3]);
  }
};

template <>
struct Eight<kFloat32> {
  float x[8];
  __device__ __forceinline__ float get(int j) const { return x[j]; }
  __device__ __forceinline__ void set(const float* from) {
#pragma unroll
    for (int j = 0; j < 8; ++j) x[j] = from[j];
  }
  __device__ __forceinline__ void load(const void* p, int64_t i) {
    const float4* from = reinterpret_cast<const float4*>(static_cast<const float*>(p) + i);
    const float4 a = __ldg(from), b = __ldg(from + 1);
    x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w, x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
  }
  __device__ __forceinline__ void store(void* p, int64_t i) const {
    float4* to = reinterpret_cast<float4*>(static_cast<float*>(p) + i);
    to[0] = make_float4(x[0], x[1], x[2], x[3]);
    to[1] = make_float4(x[4], x[5], x[6], x[7]);
  }
};

// Which tile a block has.
struct Tile {
  uint32_t down, across;
  __device__ __forceinline__ int64_t row() const { return static_cast<int64_t>(down) * kTileRows; }
  __device__ __forceinline__ int64_t column() const { return static_cast<int64_t>(across) * kTileColumns; }
};

__device__ __forceinline__ Tile tile_of(const MergeQuantizeParams& p) {
  const uint32_t across = static_cast<uint32_t>((p.columns + kTileColumns - 1) / kTileColumns);
  return {blockIdx.x / across, blockIdx.x % across};
}

// ---- the product B A of a tile --------------------------------------------------------------------------------------

// The weights of the tile start on their way to the L2 cache.
__device__ __forceinline__ void prefetch_weights(const MergeQuantizeParams& p, const Tile& tile) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t column = tile.column() + lane * kPerLane, row = tile.row() + warp * kRowsPerWarp;
  const int size = p.weight_dtype == kFloat32 ? 4 : 2;
  const char* at = static_cast<const char*>(p.weight) + (row * p.columns + column) * size;
  for (int i = 0; i < kRowsPerWarp && row + i < p.rows && column < p.columns; ++i, at += p.columns * size) prefetch(at);
}

// Where column c of a tile lies in its row of products.
__device__ __forceinline__ int place_of(int c) { return c % 8 / 4 * kHighHalf + c / 8 * 4 + c % 4; }

// Float32 FMAs, k ascending. A lane keeps 8 x 8 sums; per k it reads 2 + 2 LDS.128 for 64 FMA.
__device__ __noinline__ void exact_product(const MergeQuantizeParams& p, float* staged) {
  const Tile tile = tile_of(p);
  prefetch_weights(p, tile);
  const int64_t row0 = tile.row(), column0 = tile.column();
  float* const a_chunk = staged;                          // [k][half][lane][4]
  float* const b_chunk = staged + kChunk * kTileColumns;  // [k][row]
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float acc[kRowsPerWarp][kPerLane];
#pragma unroll
  for (int i = 0; i < kRowsPerWarp; ++i)
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) acc[i][j] = 0.0f;

  for (int64_t k0 = 0; k0 < p.rank; k0 += kChunk) {
    const int ranks = p.rank - k0 < kChunk ? static_cast<int>(p.rank - k0) : kChunk;
    __syncthreads();
    const int c = threadIdx.x;  // one column of A a thread
    const int place = c % kPerLane / 4 * 128 + c / kPerLane * 4 + c % 4;
    const bool valid = column0 + c < p.columns;
    with_type(p.a_dtype, [&](auto type) {
      int64_t at = k0 * p.columns + column0 + c;
#pragma unroll 4
      for (int k = 0; k < ranks; ++k, at += p.columns) {
        a_chunk[k * kTileColumns + place] = valid ? element(p.lora_a, decltype(type)::value, at) : 0.0f;
      }
    });
    const int k = threadIdx.x % kChunk;
    with_type(p.b_dtype, [&](auto type) {
      if (k >= ranks) return;
#pragma unroll 4
      for (int r = threadIdx.x / kChunk; r < kTileRows; r += kThreads / kChunk) {
        const int64_t at = (row0 + r) * p.rank + k0 + k;
        b_chunk[k * kBStride + r] = row0 + r < p.rows ? element(p.lora_b, decltype(type)::value, at) : 0.0f;
      }
    });
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
    float4* to = reinterpret_cast<float4*>(staged + (warp * kRowsPerWarp + i) * kProductStride);
    to[lane] = make_float4(acc[i][0], acc[i][1], acc[i][2], acc[i][3]);
    to[kHighHalf / 4 + lane] = make_float4(acc[i][4], acc[i][5], acc[i][6], acc[i][7]);
  }
}

// x as three bfloat16 numbers whose sum it is: each step takes 8 bits of 24, rounded, and the remainder is exact.
struct Split {
  float high, middle, low;
};
__device__ __forceinline__ Split split(float x) {
  Split s;
  s.high = float_of(rounded_pair<kBFloat16>(0.0f, x) & 0xffff0000u);
  const float rest = __fsub_rn(x, s.high);
  s.middle = float_of(rounded_pair<kBFloat16>(0.0f, rest) & 0xffff0000u);
  s.low = __fsub_rn(rest, s.middle);
  return s;
}

// Whether x and its parts, and products of two such and sums of those, are normal float32 numbers (or zero).
__device__ __forceinline__ bool splits(float x) {
  const float size = fabsf(x);
  return size == 0.0f || (size >= kSmallStep && size <= kLargeSplit);
}

__device__ __forceinline__ bool store_split(uint32_t* to, int term_stride, float x0, float x1) {
  const Split s0 = split(x0), s1 = split(x1);
  to[0] = bits_of(s0.high) >> 16 | bits_of(s1.high);
  to[term_stride] = bits_of(s0.middle) >> 16 | bits_of(s1.middle);
  to[2 * term_stride] = bits_of(s0.low) >> 16 | bits_of(s1.low);
  return splits(x0) && splits(x1);
}

// bfloat16 tensor cores on operands split in three: a = a1 + a2 + a3 exactly, |a2| <= 2^-8 |a|, |a3| <= 2^-16 |a|, b
// alike. Six of the nine products are taken, smallest first, into fresh sums for every 16 ranks; those join the total
// by float32 additions, which round to nearest where tensor cores truncate. What is left out is below
//   |a2 b3| + |a3 b2| + |a3 b3| <= (2^-24 + 2^-24 + 2^-32) |a||b|  ->  1.2e-7 of sum |b||a|
// and each of the r / 16 additions errs by 2^-24 of its result: 4.8e-7 at r = 128 were they all of one sign. Within a
// tensor-core sum of 16 products the largest keeps 24 bits or more. False, for the whole block, where an element is so
// large or small that parts or products would leave float32's normal range; the exact path then serves.
__device__ __noinline__ bool tensor_product(const MergeQuantizeParams& p, float* staged) {
  const Tile tile = tile_of(p);
  prefetch_weights(p, tile);
  const int64_t row0 = tile.row(), column0 = tile.column();
  uint32_t* const a_split = reinterpret_cast<uint32_t*>(staged);
  uint32_t* const b_split = a_split + kTerms * kPairs * kASplitStride;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int first_row = warp / 2 * 16, first_column = warp % 2 * 128;  // 16 x 128 a warp
  const int g = lane / 4, t = lane % 4;
  float acc[16][4];
#pragma unroll
  for (int j = 0; j < 16; ++j)
#pragma unroll
    for (int q = 0; q < 4; ++q) acc[j][q] = 0.0f;

  for (int64_t k0 = 0; k0 < p.rank; k0 += kChunk) {
    const int ranks = p.rank - k0 < kChunk ? static_cast<int>(p.rank - k0) : kChunk;
    const int pairs = (ranks + 15) / 16 * 8;
    bool normal = true;
    __syncthreads();
    const int c = threadIdx.x;  // one column of A a thread
    const bool valid = column0 + c < p.columns;
    with_type(p.a_dtype, [&](auto type) {
      int64_t at = k0 * p.columns + column0 + c;
#pragma unroll 2
      for (int i = 0; i < pairs; ++i, at += 2 * p.columns) {
        const float x0 = valid && 2 * i < ranks ? element(p.lora_a, decltype(type)::value, at) : 0.0f;
        const float x1 = valid && 2 * i + 1 < ranks ? element(p.lora_a, decltype(type)::value, at + p.columns) : 0.0f;
        normal &= store_split(a_split + i * kASplitStride + c, kPairs * kASplitStride, x0, x1);
      }
    });
    const int i = threadIdx.x % kPairs;
    with_type(p.b_dtype, [&](auto type) {
      if (i >= pairs) return;
#pragma unroll 2
      for (int r = threadIdx.x / kPairs; r < kTileRows; r += kThreads / kPairs) {
        const int64_t at = (row0 + r) * p.rank + k0 + 2 * i;
        const bool live = row0 + r < p.rows;
        const float x0 = live && 2 * i < ranks ? element(p.lora_b, decltype(type)::value, at) : 0.0f;
        const float x1 = live && 2 * i + 1 < ranks ? element(p.lora_b, decltype(type)::value, at + 1) : 0.0f;
        normal &= store_split(b_split + i * kBSplitStride + r, kPairs * kBSplitStride, x0, x1);
      }
    });
    if (__syncthreads_or(!normal)) return false;
    for (int pair0 = 0; pair0 < pairs; pair0 += 8) {
      uint32_t b[kTerms][4];
#pragma unroll
      for (int term = 0; term < kTerms; ++term) {
        const uint32_t* from = b_split + (term * kPairs + pair0 + t) * kBSplitStride + first_row + g;
        b[term][0] = from[0];
        b[term][1] = from[8];
        b[term][2] = from[4 * kBSplitStride];
        b[term][3] = from[4 * kBSplitStride + 8];
      }
#pragma unroll
      for (int j = 0; j < 16; ++j) {
        uint32_t a[kTerms][2];
#pragma unroll
        for (int term = 0; term < kTerms; ++term) {
          const uint32_t* from = a_split + (term * kPairs + pair0 + t) * kASplitStride + first_column + j * 8 + g;
          a[term][0] = from[0];
          a[term][1] = from[4 * kASplitStride];
        }
        float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        mma_bf16(sum, b[1], a[1]);
        mma_bf16(sum, b[0], a[2]);
        mma_bf16(sum, b[2], a[0]);
        mma_bf16(sum, b[0], a[1]);
        mma_bf16(sum, b[1], a[0]);
        mma_bf16(sum, b[0], a[0]);
#pragma unroll
        for (int q = 0; q < 4; ++q) acc[j][q] = __fadd_rn(acc[j][q], sum[q]);
      }
    }
  }
  __syncthreads();
#pragma unroll
  for (int j = 0; j < 16; ++j)
#pragma unroll
    for (int q = 0; q < 4; q += 2) {
      float* to = staged + (first_row + q * 4 + g) * kProductStride + place_of(first_column + j * 8 + 2 * t);
      *reinterpret_cast<float2*>(to) = make_float2(acc[j][q], acc[j][q + 1]);
    }
  return true;
}

// Leaves the tile's rows of products in `staged`, for all threads to read.
__device__ __forceinline__ void product(const MergeQuantizeParams& p, float* staged) {
  if (p.precision != kTensorCore || !tensor_product(p, staged)) exact_product(p, staged);
  __syncthreads();
}

// ---- grids ----------------------------------------------------------------------------------------------------------

// How the codes of a group are found; the larger of a pair of grids counts.
//   kShort: weights and steps have so few significant bits that w / s is an exact tie or far from one (the reasons are
//   in cpu_rows.cpp). Rounding w * (1 / s) to a multiple of 2^-13 restores the tie and moves nothing across one.
//   kReciprocal: w * (1 / s), and division for a lane that comes near a tie.
//   kDivision: the reciprocal or the sums would leave float32's normal range.
enum Kind : int { kShort, kReciprocal, kDivision, kStepOverflow, kNonFinite };

// A grid as the epilogue wants it. With L = 2^bits - 3/4, w * factor + offset lies in [0, 1] just where the code is not
// clamped, and beyond it for clamped ones, so that one saturated FMA multiplies and clamps on both sides; times L plus
// `low` gives back w / s, but at most a quarter above the largest code, where it rounds to it.
struct Plan {
  float step, factor, low;
  int kind;
};

__device__ __forceinline__ float levels_of(const GridRule& rule) { return static_cast<float>(1 << rule.bits) - 0.75f; }

// Out of line: a few hundred instructions, needed once for 64 weights.
__device__ __noinline__ Plan plan_of(float low, float high, const GridRule& rule, int dtype) {
  const Grid grid = grid_of_range(low, high, rule);
  Plan plan{grid.step, 0.0f, grid.low, kReciprocal};
  const uint32_t tail = dtype == kBFloat16 ? 0xffffu : 0x1fffu;
  const bool usual = grid.step == 0.0f || (grid.step >= kSmallStep && grid.step <= kLargeStep);
  if (!usual) {
    plan.kind = kDivision;
  } else if (rule.symmetric && dtype != kFloat32 && (bits_of(grid.step) & tail) == 0) {
    plan.kind = kShort;
  }
  if (bits_of(grid.step) >= kInfBits) plan.kind = kStepOverflow;
  if ((bits_of(low) & ~kSignBit) >= kInfBits || (bits_of(high) & ~kSignBit) >= kInfBits) plan.kind = kNonFinite;
  if (usual && grid.step > 0.0f) plan.factor = divided(divided(1.0f, grid.step), levels_of(rule));
  return plan;
}

__device__ __forceinline__ float zero_of(const Plan& plan, const GridRule& rule) {
  return -static_cast<float>(1 << (rule.bits - 1)) - plan.low;
}

// Out of line: rare, and inlined a few times it would be most of the kernel.
__device__ __noinline__ float level_by_division(float w, float step, float low, float levels) {
  return level_of(w, Grid{step, 0.0f, low, low + (levels - 0.25f)});
}

// kRounder plus the level of a weight, its code minus the zero point. `origin` is low, with kSnap if kSnapped;
// unless kSnapped, `off` becomes at least the distance from the level to the quotient.
template <bool kSnapped>
__device__ __forceinline__ float rounded_level(float w, float factor, float offset, float levels, float origin,
                                               float& off) {
  const float t = __fmaf_rn(fma_saturated(w, factor, offset), levels, origin);
  if constexpr (kSnapped) return __fadd_rn(t, kRounder - kSnap);
  const float y = __fadd_rn(t, kRounder);
  off = fmaxf(off, fabsf(__fsub_rn(t, __fsub_rn(y, kRounder))));
  return y;
}

// How near a tie a quotient by reciprocal may come before it is divided: its error is below 2^-13 for 8 bits (2^-18 for
// fewer), see above: the factor and the offset err by 2^-23 of themselves, the saturated sum by 2^-25, all times L.
__device__ __forceinline__ float near_tie_of(const GridRule& rule) {
  return rule.bits == 8 ? 0.5f - 1.2207031e-4f : 0.5f - 1.5258789e-5f;
}

// ---- counts ---------------------------------------------------------------------------------------------------------

// What one lane counts and adds up.
struct Tally {
  int crossed, ones, far, moved, steps_moved, zero_groups;  // codes that changed by one, by more
  double sums[kSums];
};

// The floats of one lane within one group.
struct Span {
  float within, dw2, qdw, q2;
};

__device__ __forceinline__ void add_span(Tally& tally, const Span& span) {
  tally.sums[0] += span.within;
  tally.sums[1] += span.dw2;
  tally.sums[2] += span.qdw;
  tally.sums[3] += span.q2;
}

// One weight and its levels, for steps that are out of the ordinary.
__device__ __forceinline__ void add_unusual(Tally& tally, float w, float m, float n0, float n1, float step0,
                                            float step1) {
  const float dw = __fsub_rn(m, w);
  const float delta = __fsub_rn(__fmul_rn(n1, step1), __fmul_rn(n0, step0));
  tally.moved += dw != 0.0f;
  if (step0 > 0.0f) tally.sums[0] += fminf(divided(fabsf(dw), step0), 1.0f);
  tally.sums[1] += __fmul_rn(dw, dw);
  tally.sums[2] += __fmul_rn(delta, dw);
  tally.sums[3] += __fmul_rn(delta, delta);
}

__device__ __forceinline__ void count_jump(Tally& tally, int* histogram, int jump) {
  tally.ones += jump == 1;
  tally.far += jump > 1;
  if (jump > 1) atomicAdd(histogram + jump, 1);
}

// Block totals: counts to global atomics, sums to this block's own place.
__device__ __forceinline__ void finish_block(const Tally& tally, const int* histogram, const MergeQuantizeParams& p,
                                             const CudaScratch& scratch) {
  __shared__ double block_sums[kWarps][kSums];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int counts[6] = {tally.crossed,     tally.ones + tally.far, tally.moved,
                         tally.steps_moved, tally.zero_groups,      tally.ones};
  unsigned long long* totals = reinterpret_cast<unsigned long long*>(p.counts);
#pragma unroll
  for (int i = 0; i < 6; ++i) {
    const int sum = __reduce_add_sync(kAll, counts[i]);
    const int place = i < kCounts ? i : kCounts + 1;
    if (lane == 0 && sum != 0) atomicAdd(totals + place, static_cast<unsigned long long>(sum));
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

// ---- the fused kernel -----------------------------------------------------------------------------------------------

// Smallest and largest weight of a lane's group, before and after; symmetric: the largest magnitude as `high`.
struct Ranges {
  float low0, high0, low1, high1;
};

template <int kType, bool kSymmetric>
__device__ __forceinline__ Ranges ranges_of(const Eight<kType>& w, const Eight<kType>& m, int lanes_per_group) {
  Ranges r{0.0f, 0.0f, 0.0f, 0.0f};
  if constexpr (kType == kFloat32) {
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) {
      r.high0 = larger(r.high0, kSymmetric ? fabsf(w.x[j]) : w.x[j]);
      r.high1 = larger(r.high1, kSymmetric ? fabsf(m.x[j]) : m.x[j]);
      if constexpr (!kSymmetric) r.low0 = smaller(r.low0, w.x[j]), r.low1 = smaller(r.low1, m.x[j]);
    }
#pragma unroll
    for (int i = 1; i < 32; i *= 2) {
      const int offset = i & (lanes_per_group - 1);  // beyond the group: the lane's own
      r.high0 = larger(r.high0, __shfl_xor_sync(kAll, r.high0, offset));
      r.high1 = larger(r.high1, __shfl_xor_sync(kAll, r.high1, offset));
      if constexpr (!kSymmetric) {
        r.low0 = smaller(r.low0, __shfl_xor_sync(kAll, r.low0, offset));
        r.low1 = smaller(r.low1, __shfl_xor_sync(kAll, r.low1, offset));
      }
    }
  } else {
    // Two at a time; then the pair is (before, after) instead of (even, odd), and one shuffle serves both.
    constexpr uint32_t kKept = kSymmetric ? 0x7fff7fffu : 0xffffffffu;
    uint32_t high0 = w.words[0] & kKept, high1 = m.words[0] & kKept, low0 = w.words[0], low1 = m.words[0];
#pragma unroll
    for (int j = 1; j < 4; ++j) {
      high0 = larger_pair<kType>(high0, w.words[j] & kKept);
      high1 = larger_pair<kType>(high1, m.words[j] & kKept);
      if constexpr (!kSymmetric) {
        low0 = smaller_pair<kType>(low0, w.words[j]);
        low1 = smaller_pair<kType>(low1, m.words[j]);
      }
    }
    uint32_t high = larger_pair<kType>(bytes_of(high0, high1, 0x5410), bytes_of(high0, high1, 0x7632));
    uint32_t low = 0;
    if constexpr (!kSymmetric) {
      low = smaller_pair<kType>(bytes_of(low0, low1, 0x5410), bytes_of(low0, low1, 0x7632));
    }
#pragma unroll
    for (int i = 1; i < 32; i *= 2) {
      const int offset = i & (lanes_per_group - 1);  // beyond the group: the lane's own
      high = larger_pair<kType>(high, __shfl_xor_sync(kAll, high, offset));
      if constexpr (!kSymmetric) low = smaller_pair<kType>(low, __shfl_xor_sync(kAll, low, offset));
    }
    Eight<kType> pairs;
    pairs.words[0] = low;
    pairs.words[1] = high;
    r = {pairs.get(0), pairs.get(2), pairs.get(1), pairs.get(3)};
  }
  return r;
}

// Codes plus 128 of a lane's weights, a byte each: 0, 2, 4, 6 in `even`.
struct CodeBytes {
  uint32_t even, odd;
};

template <bool kSymmetric>
__device__ __forceinline__ CodeBytes code_bytes(const float* y, float zero) {
  uint32_t bits[kPerLane];
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) bits[j] = bits_of(kSymmetric ? y[j] : __fadd_rn(y[j], zero + 128.0f));
  CodeBytes bytes{bytes_of(bytes_of(bits[0], bits[2], 0x0040), bytes_of(bits[4], bits[6], 0x0040), 0x5410),
                  bytes_of(bytes_of(bits[1], bits[3], 0x0040), bytes_of(bits[5], bits[7], 0x0040), 0x5410)};
  if constexpr (kSymmetric) bytes.even ^= 0x80808080u, bytes.odd ^= 0x80808080u;
  return bytes;
}

__device__ __forceinline__ void store_codes(const MergeQuantizeParams& p, int64_t row, int64_t column,
                                            const CodeBytes& bytes) {
  char* out = static_cast<char*>(p.packed) + row * p.packed_stride;
  if (p.rule.bits == 4) {
    const uint32_t word = (bytes.even & 0x0f0f0f0fu) | (bytes.odd << 4 & 0xf0f0f0f0u);
    reinterpret_cast<uint32_t*>(out)[column / 8] = word ^ 0x88888888u;
  } else if (p.rule.bits == 2) {
    uint32_t word = ((bytes.even & 0x03030303u) | (bytes.odd << 2 & 0x0c0c0c0cu)) ^ 0x0a0a0a0au;
    word = (word | word >> 4) & 0x00ff00ffu;
    word = (word | word >> 8) & 0x0000ffffu;
    reinterpret_cast<uint16_t*>(out)[column / 8] = static_cast<uint16_t>(word);
    // A row of 8 (mod 16) columns ends in half a word; its other half is padding.
    if (column + kPerLane == p.columns && column / 8 % 2 == 0) {
      reinterpret_cast<uint16_t*>(out)[column / 8 + 1] = 0;
    }
  } else {
    const uint32_t sign = p.rule.bits == 8 ? 0u : 0x80808080u;  // 3-bit codes are stored signed
    const uint32_t low = bytes_of(bytes.even, bytes.odd, 0x5140), high = bytes_of(bytes.even, bytes.odd, 0x7362);
    reinterpret_cast<uint2*>(out)[column / 8] = make_uint2(low ^ sign, high ^ sign);
  }
}

__device__ __forceinline__ void count_codes(Tally& tally, int* histogram, const CodeBytes& before,
                                            const CodeBytes& frozen, const CodeBytes& after) {
  const uint32_t jump0 = byte_distances(before.even, after.even), jump1 = byte_distances(before.odd, after.odd);
  const uint32_t cross0 = byte_distances(before.even, frozen.even), cross1 = byte_distances(before.odd, frozen.odd);
  if (((jump0 | jump1 | cross0 | cross1) & 0xfefefefeu) == 0) {  // no code moved by more than one: sums are counts
    tally.ones = static_cast<int>(add_bytes(jump0, add_bytes(jump1, static_cast<uint32_t>(tally.ones))));
    tally.crossed = static_cast<int>(add_bytes(cross0, add_bytes(cross1, static_cast<uint32_t>(tally.crossed))));
    return;
  }
#pragma unroll 1
  for (int shift = 0; shift < 32; shift += 8) {
    tally.crossed += ((cross0 >> shift & 0xffu) != 0) + ((cross1 >> shift & 0xffu) != 0);
    count_jump(tally, histogram, static_cast<int>(jump0 >> shift & 0xffu));
    count_jump(tally, histogram, static_cast<int>(jump1 >> shift & 0xffu));
  }
}

// One lane's eight weights of one row.
template <int kType, bool kSymmetric, bool kCount>
struct Epilogue {
  const MergeQuantizeParams& p;
  Tally& tally;
  int* histogram;
  float levels, per_level;  // L and 1 / L

  // By multiplication; false if a quotient comes so near a tie that it must be divided. Nothing is kept then.
  template <bool kSnapped>
  __device__ __forceinline__ bool fast(const Eight<kType>& w8, const Eight<kType>& m8, const Plan& before,
                                       const Plan& after, int64_t row, int64_t column) const {
    const float origin = kSnapped ? kSnap : 0.0f;
    const float offset0 = -before.low * per_level, offset1 = -after.low * per_level;
    const float origin0 = origin + before.low, origin1 = origin + after.low;
    float y0[kPerLane], yf[kPerLane], y1[kPerLane], off = 0.0f;
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) {
      const float w = w8.get(j), m = m8.get(j);
      y1[j] = rounded_level<kSnapped>(m, after.factor, offset1, levels, origin1, off);
      if constexpr (kCount) {
        y0[j] = rounded_level<kSnapped>(w, before.factor, offset0, levels, origin0, off);
        yf[j] = rounded_level<kSnapped>(m, before.factor, offset0, levels, origin0, off);
      }
    }
    if (!kSnapped && off > near_tie_of(p.rule)) return false;
    // A short step times kRounder is exact, and so is every level times it: one FMA leaves level * step.
    const auto value = [](float y, float step, float minus) __attribute__((always_inline)) {
      return kSnapped ? __fmaf_rn(y, step, minus) : __fmul_rn(__fsub_rn(y, kRounder), step);
    };
    const float minus0 = -kRounder * before.step, minus1 = -kRounder * after.step;
    if constexpr (!kCount) {
      float values[kPerLane];
#pragma unroll
      for (int j = 0; j < kPerLane; ++j) values[j] = value(y1[j], after.step, minus1);
      Eight<kType> out;
      out.set(values);
      out.store(p.dequantized, row * p.columns + column);
      return true;
    }
    Span span{};
    const float per_step = __fmul_rn(before.factor, levels);
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) {
      const float w = w8.get(j), m = m8.get(j), dw = __fsub_rn(m, w);
      const float delta = __fsub_rn(value(y1[j], after.step, minus1), value(y0[j], before.step, minus0));
      count_unequal(tally.moved, m, w);
      span.within = __fadd_rn(span.within, product_saturated(fabsf(dw), per_step));
      span.dw2 = __fmaf_rn(dw, dw, span.dw2);
      span.qdw = __fmaf_rn(delta, dw, span.qdw);
      span.q2 = __fmaf_rn(delta, delta, span.q2);
    }
    add_span(tally, span);
    const float zero0 = zero_of(before, p.rule), zero1 = zero_of(after, p.rule);
    const CodeBytes codes = code_bytes<kSymmetric>(y1, zero1);
    count_codes(tally, histogram, code_bytes<kSymmetric>(y0, zero0), code_bytes<kSymmetric>(yf, zero0), codes);
    store_codes(p, row, column, codes);
    return true;
  }

  // By division, one weight at a time.
  __device__ __forceinline__ void slow(const Eight<kType>& w8, const Eight<kType>& m8, const Plan& before,
                                       const Plan& after, int64_t row, int64_t column) const {
    CodeBytes codes[3] = {};
    const float zero0 = zero_of(before, p.rule), zero1 = zero_of(after, p.rule);
#pragma unroll 1
    for (int j = 0; j < kPerLane; ++j) {
      float w = w8.get(0), m = m8.get(0);
#pragma unroll
      for (int i = 1; i < kPerLane; ++i) w = i == j ? w8.get(i) : w, m = i == j ? m8.get(i) : m;
      const float n1 = level_by_division(m, after.step, after.low, levels);
      if constexpr (!kCount) {
        set_element(p.dequantized, kType, row * p.columns + column + j, __fmul_rn(n1 + 0.0f, after.step));
      } else {
        const float n0 = level_by_division(w, before.step, before.low, levels);
        const float nf = level_by_division(m, before.step, before.low, levels);
        add_unusual(tally, w, m, n0, n1, before.step, after.step);
        const float code[3] = {n0 + zero0, nf + zero0, n1 + zero1};
#pragma unroll
        for (int i = 0; i < 3; ++i) {
          const uint32_t byte = static_cast<uint32_t>(static_cast<int>(code[i]) + 128) << (j / 2 * 8);
          if (j % 2 == 0) codes[i].even |= byte;
          if (j % 2 != 0) codes[i].odd |= byte;
        }
      }
    }
    if constexpr (kCount) {
      count_codes(tally, histogram, codes[0], codes[1], codes[2]);
      store_codes(p, row, column, codes[2]);
    }
  }
};

template <int kType, bool kSymmetric, bool kCount>
__global__ void __launch_bounds__(kThreads, 2)
    fused(const __grid_constant__ MergeQuantizeParams p, const __grid_constant__ CudaScratch scratch) {
  QRU_DYNAMIC_SHARED(float, staged);
  __shared__ Ranges ranges[kWarps][kEntries];
  __shared__ Plan plans[kWarps][kEntries][2];
  __shared__ int histogram[256];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (kCount) {
    for (int i = threadIdx.x; i < 256; i += kThreads) histogram[i] = 0;
  }
  if (p.rank > 0) product(p, staged);
  __syncthreads();  // the histogram is clear

  const Tile tile = tile_of(p);
  const int64_t column0 = tile.column(), column = column0 + lane * kPerLane;
  const int64_t first_row = tile.row() + warp * kRowsPerWarp;
  const bool inside = column < p.columns;
  Tally tally{};
  const float levels = levels_of(p.rule);
  const Epilogue<kType, kSymmetric, kCount> epilogue{p, tally, histogram, levels, divided(1.0f, levels)};
  const int lanes_per_group = static_cast<int>(p.group) / kPerLane;
  const int group_shift = 31 - __clz(lanes_per_group), row_shift = 5 - group_shift;  // powers of two all
  const int per_row = 1 << row_shift;
  const int batch = lanes_per_group < kRowsPerWarp ? lanes_per_group : kRowsPerWarp;  // batch * per_row <= kEntries
  const int entries = batch << row_shift;
  for (int i0 = 0; i0 < kRowsPerWarp; i0 += batch) {
    if (first_row + i0 >= p.rows) break;  // the same for the whole warp
    // Merge, and the range of every group. The merged weights (and 16-bit weights) take the products' place.
#pragma unroll 2
    for (int i = i0; i < i0 + batch; ++i) {
      const int64_t row = first_row + i, at = row * p.columns + column;
      const bool live = inside && row < p.rows;
      float4* const kept = reinterpret_cast<float4*>(staged + (warp * kRowsPerWarp + i) * kProductStride) + lane;
      Eight<kType> w{}, m{};
      if (live) w.load(p.weight, at);
      if (p.rank > 0) {
        const float4 low = kept[0], high = kept[kHighHalf / 4];
        float x[kPerLane] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
        for (int j = 0; j < kPerLane; ++j) x[j] = __fmaf_rn(p.scaling, x[j], w.get(j));
        m.set(x);
      } else if (p.new_weight == nullptr) {
        m = w;
      } else if (live) {
        m.load(p.new_weight, at);
      }
      if (live && p.merged != nullptr) m.store(p.merged, at);
      if constexpr (kType == kFloat32) {
        kept[0] = make_float4(m.x[0], m.x[1], m.x[2], m.x[3]);
        kept[kHighHalf / 4] = make_float4(m.x[4], m.x[5], m.x[6], m.x[7]);
      } else {
        kept[0] = make_float4(float_of(w.words[0]), float_of(w.words[1]), float_of(w.words[2]), float_of(w.words[3]));
        kept[kHighHalf / 4] =
            make_float4(float_of(m.words[0]), float_of(m.words[1]), float_of(m.words[2]), float_of(m.words[3]));
      }
      const Ranges r = ranges_of<kType, kSymmetric>(w, m, lanes_per_group);
      if ((lane & (lanes_per_group - 1)) == 0) ranges[warp][((i - i0) << row_shift) + (lane >> group_shift)] = r;
    }
    __syncwarp();
    // A grid a lane.
    for (int task = lane; task < (kCount ? 2 : 1) * entries; task += 32) {
      const int entry = kCount ? task / 2 : task, which = kCount ? task % 2 : 1;
      const Ranges r = ranges[warp][entry];
      Plan plan = plan_of(which == 0 ? r.low0 : r.low1, which == 0 ? r.high0 : r.high1, p.rule, kType);
      const bool finite = (bits_of(r.low0) & ~kSignBit) < kInfBits && (bits_of(r.high0) & ~kSignBit) < kInfBits;
      if (!kCount && !finite) plan.kind = kNonFinite;
      plans[warp][entry][which] = plan;
    }
    __syncwarp();
    if (lane < entries) {
      const int64_t row = first_row + i0 + (lane >> row_shift), at = column0 + (lane & (per_row - 1)) * p.group;
      if (row < p.rows && at < p.columns) {
        const Plan after = plans[warp][lane][1];
        int kind = after.kind;
        if constexpr (kCount) {
          const Plan before = plans[warp][lane][0];
          kind = max(kind, before.kind);
          tally.steps_moved += before.step != after.step;
          tally.zero_groups += before.step == 0.0f;
          const int log_group = group_shift + 3;
          const int64_t index = row * (p.columns >> log_group) + (at >> log_group);
          p.scales[index] = after.step;
          if (!kSymmetric) p.zeros[index] = zero_of(after, p.rule);
        }
        if (kind == kNonFinite) note_fault(scratch.faults, row);
        if (kind == kStepOverflow) note_fault(scratch.faults + 1, row);
      }
    }
    // Codes, row by row.
#pragma unroll 1
    for (int i = i0; i < i0 + batch; ++i) {
      const int64_t row = first_row + i;
      if (!inside || row >= p.rows) break;
      const int entry = ((i - i0) << row_shift) + (lane >> group_shift);
      const Plan after = plans[warp][entry][1];
      const Plan before = kCount ? plans[warp][entry][0] : after;
      const int kind = max(before.kind, after.kind);
      if (kind > kDivision) continue;
      const float4* const kept = reinterpret_cast<float4*>(staged + (warp * kRowsPerWarp + i) * kProductStride) + lane;
      const float4 low = kept[0], high = kept[kHighHalf / 4];
      Eight<kType> w, m;
      if constexpr (kType == kFloat32) {
        w.load(p.weight, row * p.columns + column);
        const float x[kPerLane] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
        m.set(x);
      } else {
        w.words[0] = bits_of(low.x), w.words[1] = bits_of(low.y), w.words[2] = bits_of(low.z);
        w.words[3] = bits_of(low.w);
        m.words[0] = bits_of(high.x), m.words[1] = bits_of(high.y), m.words[2] = bits_of(high.z);
        m.words[3] = bits_of(high.w);
      }
      bool done = false;
      if constexpr (kSymmetric && kType != kFloat32) {
        if (kind == kShort) done = epilogue.template fast<true>(w, m, before, after, row, column);
      }
      if (!done && kind <= kReciprocal) done = epilogue.template fast<false>(w, m, before, after, row, column);
      if (!done) epilogue.slow(w, m, before, after, row, column);
    }
  }
  if (kCount) {
    __syncthreads();
    finish_block(tally, histogram, p, scratch);
  }
}

// ---- any other shape ------------------------------------------------------------------------------------------------

// The merged weight of a tile, for grids that span more than a tile or do not fit its vectors.
__global__ void __launch_bounds__(kThreads) merge_tiles(const __grid_constant__ MergeQuantizeParams p) {
  QRU_DYNAMIC_SHARED(float, staged);
  product(p, staged);
  const Tile tile = tile_of(p);
  const int64_t column = tile.column() + threadIdx.x, row0 = tile.row();
  if (column >= p.columns) return;
  const float* from = staged + place_of(threadIdx.x);
  for (int i = 0; i < kTileRows && row0 + i < p.rows; ++i) {
    const int64_t at = (row0 + i) * p.columns + column;
    const float w = element(p.weight, p.weight_dtype, at);
    set_element(p.merged, p.weight_dtype, at, __fmaf_rn(p.scaling, from[i * kProductStride], w));
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

// One warp a row: the range of the whole matrix, before and after.
__global__ void __launch_bounds__(kThreads)
    tensor_range(const __grid_constant__ MergeQuantizeParams p, const __grid_constant__ CudaScratch scratch,
                 const void* after) {
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
    quantize_groups(const __grid_constant__ MergeQuantizeParams p, const __grid_constant__ CudaScratch scratch,
                    const void* after) {
  __shared__ int histogram[256];
  for (int i = threadIdx.x; i < 256; i += kThreads) histogram[i] = 0;
  __syncthreads();
  const int lane = threadIdx.x % 32;
  const int64_t group = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int64_t groups = p.rows * (p.columns / p.group);
  const float levels = levels_of(p.rule), near_tie = near_tie_of(p.rule);
  const bool count = p.counts != nullptr;
  Tally tally{};
  if (group < groups) {
    const int64_t from = group * p.group, row = from / p.columns;
    WarpRange r0{scratch.range[0], scratch.range[1], 0}, r1{scratch.range[2], scratch.range[3], 0};
    if (!p.per_tensor) {
      r0 = range_of(p.weight, p.weight_dtype, from, p.group);
      r1 = range_of(after, p.weight_dtype, from, p.group);
    }
    const auto plan = [&](const WarpRange& r) {
      const float low = -float_of(r.low), high = float_of(r.high);
      Plan made = plan_of(low, high, p.rule, p.weight_dtype);
      if (r.top >= kInfBits) made.kind = kNonFinite;
      return made;
    };
    const Plan g1 = plan(r1);
    Plan g0 = plan(r0);
    if (!count && g0.kind != kNonFinite) g0 = g1;
    const int kind = max(g0.kind, g1.kind);
    if (kind > kDivision) {
      // tensor_range has named the row where one grid serves the matrix.
      if (lane == 0 && kind == kStepOverflow) note_fault(scratch.faults + 1, row);
      if (lane == 0 && kind == kNonFinite && !p.per_tensor) note_fault(scratch.faults, row);
    } else {
      const float zero0 = zero_of(g0, p.rule), zero1 = zero_of(g1, p.rule);
      if (count && lane == 0 && (!p.per_tensor || group == 0)) {
        p.scales[p.per_tensor ? 0 : group] = g1.step;
        if (p.zeros != nullptr) p.zeros[p.per_tensor ? 0 : group] = zero1;
        tally.steps_moved = g0.step != g1.step;
        tally.zero_groups = g0.step == 0.0f;
      }
      // Short steps need no path of their own here: a quotient near a tie is divided.
      const auto level = [&](float x, const Plan& g) {
        float off = 0.0f;
        const float y = rounded_level<false>(x, g.factor, -g.low / levels, levels, g.low, off);
        if (kind == kDivision || off > near_tie) return level_by_division(x, g.step, g.low, levels);
        return __fsub_rn(y, kRounder);
      };
      for (int64_t j0 = 0; j0 < p.group; j0 += 32 * 16) {  // spans short enough for float32
        Span span{};
        for (int64_t j = j0 + lane; j < j0 + 32 * 16 && j < p.group; j += 32) {
          const float w = element(p.weight, p.weight_dtype, from + j), m = element(after, p.weight_dtype, from + j);
          const float n1 = level(m, g1);
          if (p.dequantized != nullptr) {
            set_element(p.dequantized, p.weight_dtype, from + j, __fmul_rn(n1 + 0.0f, g1.step));
          }
          const int code = static_cast<int>(n1 + zero1);
          if (p.packed != nullptr) scratch.codes[from + j] = static_cast<int8_t>(code);
          if (!count) continue;
          const float n0 = level(w, g0), nf = level(m, g0);
          tally.crossed += nf != n0;
          count_jump(tally, histogram, abs(code - static_cast<int>(n0 + zero0)));
          if (kind == kDivision) {
            add_unusual(tally, w, m, n0, n1, g0.step, g1.step);
            continue;
          }
          const float dw = __fsub_rn(m, w);
          const float delta = __fsub_rn(__fmul_rn(n1, g1.step), __fmul_rn(n0, g0.step));
          tally.moved += dw != 0.0f;
          span.within = __fadd_rn(span.within, product_saturated(fabsf(dw), __fmul_rn(g0.factor, levels)));
          span.dw2 = __fmaf_rn(dw, dw, span.dw2);
          span.qdw = __fmaf_rn(delta, dw, span.qdw);
          span.q2 = __fmaf_rn(delta, delta, span.q2);
        }
        add_span(tally, span);
      }
    }
  }
  if (!count) return;
  __syncthreads();
  finish_block(tally, histogram, p, scratch);
}

// One thread a byte of a packed row.
__global__ void __launch_bounds__(kThreads)
    pack_all(const __grid_constant__ MergeQuantizeParams p, const int8_t* codes) {
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
__global__ void finish(const __grid_constant__ MergeQuantizeParams p, const __grid_constant__ CudaScratch scratch,
                       int64_t blocks) {
  const int sum = threadIdx.x / 32, lane = threadIdx.x % 32;
  double x = 0.0;
  for (int64_t i = lane; i < blocks; i += 32) x += scratch.partials[i * kSums + sum];
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_down_sync(kAll, x, offset);
  if (lane == 0) p.sums[sum] = x;
  if (threadIdx.x == 0) p.counts[kCounts] = p.rows * p.columns - p.counts[1];
}

// ---- launches -------------------------------------------------------------------------------------------------------

int64_t tiles(const MergeQuantizeParams& p) {
  return (p.rows + kTileRows - 1) / kTileRows * ((p.columns + kTileColumns - 1) / kTileColumns);
}

int64_t group_blocks(const MergeQuantizeParams& p) { return (p.rows * (p.columns / p.group) + kWarps - 1) / kWarps; }

template <typename Kernel, typename... Args>
cudaError_t launch_staged(Kernel kernel, int64_t blocks, void* stream, const Args&... args) {
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kStagedBytes);
  return error != cudaSuccess ? error : launch(kernel, blocks, kThreads, kStagedBytes, stream, args...);
}

template <int kType>
cudaError_t launch_fused(const MergeQuantizeParams& p, const CudaScratch& scratch, void* stream) {
  const bool count = p.counts != nullptr;
  if (p.rule.symmetric) {
    return count ? launch_staged(fused<kType, true, true>, tiles(p), stream, p, scratch)
                 : launch_staged(fused<kType, true, false>, tiles(p), stream, p, scratch);
  }
  return count ? launch_staged(fused<kType, false, true>, tiles(p), stream, p, scratch)
               : launch_staged(fused<kType, false, false>, tiles(p), stream, p, scratch);
}

cudaError_t launch_plain(const MergeQuantizeParams& p, const CudaScratch& scratch, void* stream) {
  const void* after = p.new_weight != nullptr ? p.new_weight : p.weight;
  if (p.rank > 0) {
    const cudaError_t error = launch_staged(merge_tiles, tiles(p), stream, p);
    if (error != cudaSuccess) return error;
    after = p.merged;
  } else if (p.merged != nullptr) {
    const size_t bytes = static_cast<size_t>(p.rows * p.columns * (p.weight_dtype == kFloat32 ? 4 : 2));
    const cudaError_t error =
        cudaMemcpyAsync(p.merged, after, bytes, cudaMemcpyDeviceToDevice, static_cast<cudaStream_t>(stream));
    if (error != cudaSuccess) return error;
  }
  if (p.per_tensor) {
    const cudaError_t error =
        launch(tensor_range, (p.rows + kWarps - 1) / kWarps, kThreads, 0, stream, p, scratch, after);
    if (error != cudaSuccess) return error;
  }
  const cudaError_t error = launch(quantize_groups, group_blocks(p), kThreads, 0, stream, p, scratch, after);
  if (error != cudaSuccess || p.packed == nullptr || p.rule.bits == 3) return error;
  const int64_t bytes = p.rows * p.packed_stride, blocks = std::min<int64_t>((bytes + kThreads - 1) / kThreads, 4096);
  return launch(pack_all, blocks, kThreads, 0, stream, p, static_cast<const int8_t*>(scratch.codes));
}

}  // namespace

bool cuda_is_fused(const MergeQuantizeParams& p) {
  const bool power = p.group >= kPerLane && p.group <= kTileColumns && (p.group & (p.group - 1)) == 0;
  return power && !p.per_tensor && p.columns % kPerLane == 0;
}

int64_t cuda_blocks(const MergeQuantizeParams& p) { return cuda_is_fused(p) ? tiles(p) : group_blocks(p); }

const char* merge_quantize_cuda(const MergeQuantizeParams& p, const CudaScratch& scratch, void* stream) {
  constexpr int64_t kMostBlocks = 0x7fffffff;
  if (cuda_blocks(p) > kMostBlocks || tiles(p) > kMostBlocks) return "the matrix needs more blocks than one launch has";
  cudaError_t error = cudaSuccess;
  if (!cuda_is_fused(p)) {
    error = launch_plain(p, scratch, stream);
  } else if (p.weight_dtype == kFloat32) {
    error = launch_fused<kFloat32>(p, scratch, stream);
  } else if (p.weight_dtype == kBFloat16) {
    error = launch_fused<kBFloat16>(p, scratch, stream);
  } else {
    error = launch_fused<kFloat16>(p, scratch, stream);
  }
  if (error == cudaSuccess && p.counts != nullptr) {
    error = launch(finish, 1, 32 * kSums, 0, stream, p, scratch, cuda_blocks(p));
  }
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace qru
