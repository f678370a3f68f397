// What every launcher of merge_quantize takes. Pointers are raw, sizes are in elements, rows are contiguous.
#pragma once

#include <cstdint>

#include "grid.h"

namespace qru {

constexpr int kCounts = 5;  // crossed, changed, moved, steps_moved, zero_groups; the histogram follows
constexpr int kSums = 4;    // predicted, sum_dw2, sum_q_dw, sum_q2

// How B A is summed: float32 FMAs with k ascending, or bfloat16 tensor-core products of split operands (CUDA only).
enum Precision : int { kExact = 0, kTensorCore = 1 };

struct MergeQuantizeParams {
  int64_t rows;     // out
  int64_t columns;  // in
  int64_t rank;     // 0 without an adapter
  int64_t group;    // weights that share a step; `columns` when per_tensor
  int per_tensor;   // one grid for the whole matrix
  GridRule rule;
  float scaling;
  int weight_dtype;  // of weight, new_weight and merged
  int a_dtype;
  int b_dtype;

  const void* weight;      // (rows, columns)
  const void* lora_a;      // (rank, columns)
  const void* lora_b;      // (rows, rank)
  const void* new_weight;  // (rows, columns) or null

  void* packed;           // rows of packed_stride bytes; null with `dequantized`
  int64_t packed_stride;  // bytes
  float* scales;          // (rows, columns / group), or 1; null with `dequantized`
  float* zeros;           // likewise; null when symmetric and with `dequantized`
  void* merged;           // (rows, columns) or null; required when per_tensor and rank > 0
  int64_t* counts;        // kCounts + 2^bits; null: nothing is counted, and the base's grid and codes are not needed
  double* sums;           // kSums; null with `counts`

  void* dequantized;  // (rows, columns) in the weight's dtype, (q - z) * s in float32 rounded once; or null
  int precision;      // kExact or kTensorCore
};

// Where a launcher met something that has no answer; the first by row. -1: nowhere.
struct MergeQuantizeFault {
  int64_t non_finite_row;     // NaN or Inf in the inputs or in the merged weight
  int64_t step_overflow_row;  // a step that scale_dtype cannot hold
  int out_of_memory;
};

enum Isa : int { kPlain = 0, kAvx2 = 1, kAvx512 = 2 };

Isa best_isa();
bool isa_available(Isa isa);
MergeQuantizeFault merge_quantize_cpu(const MergeQuantizeParams& params, int threads, Isa isa);

}  // namespace qru
