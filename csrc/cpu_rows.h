// Between the dispatcher (merge_quantize_cpu.cpp, plain flags, OpenMP) and the row kernels (cpu_rows.cpp, compiled once
// per instruction set).
#pragma once

#include "merge_quantize.h"

namespace qru {

constexpr int64_t kSpan = 128;      // weights summed in float32 before the sum joins a float64 total
constexpr int64_t kLane = 16;       // float32 lanes of every path, so that all of them add in one order
constexpr int64_t kPair = 32;       // weights of two vectors; groups are padded to whole ones
constexpr int64_t kBlock = 64;      // weights whose codes fill a block of bytes
constexpr int64_t kPanelStep = 64;  // a packed panel of A is padded to whole steps of this many columns

// Where column i of 32 stands in a panel, and in two vectors: bfloat16 weights are spread by a shift (the even ones)
// and a mask (the odd ones), other types keep their order.
constexpr int64_t place_in_pair(int weight_dtype, int64_t i) {
  return weight_dtype == kBFloat16 ? i / 2 + i % 2 * kLane : i;
}

struct RowTotals {
  int64_t counts[kCounts + 256];
  int64_t non_finite_row;
  int64_t step_overflow_row;
};

// Range of the weight and of the merged weight: zero, or beyond it. A NaN or Inf shows in one of the four.
struct Range {
  float high_before, low_before, high_after, low_after;
};

struct RowTask {
  const MergeQuantizeParams* params;
  const float* a_panels;  // [panel][k][panel_pad], float32, each group padded with zeros to whole pairs
  const float* b;         // (rows, rank) float32
  int64_t group_pad;      // a group, padded
  int64_t panel;          // columns of a panel: whole groups, whole words
  int64_t panel_pad;      // the same padded, a multiple of kPanelStep
  Grid tensor_before;     // one grid per matrix: set for the second pass
  Grid tensor_after;
  Range* ranges;  // of rows; non-null: only merge and measure
  double (*row_sums)[kSums];
};

constexpr int kTileRows = 6;

// How a group's quotients by its step are rounded; see cpu_rows.cpp.
enum Method : int { kTable, kSnapped, kReciprocal, kDivision, kSkip };

struct GroupWork {
  Range range;
  Grid before, after;
  float reciprocal_before, reciprocal_after;  // of the steps; 0 for a step of 0
  Method method;
};

struct RowScratch {
  float* products;    // kTileRows * panel_pad
  char* merged;       // likewise, of the weight's type
  int8_t* codes;      // a row of a panel and a block more
  GroupWork* groups;  // kTileRows * groups of a panel
};

// Rows [begin, end) of the task. One function per instruction set.
void rows_plain(const RowTask&, int64_t begin, int64_t end, const RowScratch&, RowTotals&);
void rows_avx2(const RowTask&, int64_t begin, int64_t end, const RowScratch&, RowTotals&);
void rows_avx512(const RowTask&, int64_t begin, int64_t end, const RowScratch&, RowTotals&);

}  // namespace qru
