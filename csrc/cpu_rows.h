// Between the dispatcher (merge_quantize_cpu.cpp, plain flags, OpenMP) and the row kernels (cpu_rows.cpp, compiled once
// per instruction set).
#pragma once

#include "merge_quantize.h"

namespace qru {

constexpr int64_t kSpan = 128;      // weights summed in float32 before the sum joins a float64 total
constexpr int64_t kLane = 16;       // float32 lanes of every path, so that all of them add in one order
constexpr int64_t kPanelStep = 64;  // a packed panel of A is padded to whole steps of this many columns

struct RowTotals {
  int64_t counts[kCounts + 256];
  int64_t non_finite_row;
  int64_t step_overflow_row;
};

// Range of the weight and of the merged weight over a row: what one grid per matrix needs before it can quantize.
struct RowRange {
  float low_before, high_before, low_after, high_after;
};

struct RowTask {
  const MergeQuantizeParams* params;
  const float* a_panels;  // [panel][k][panel_pad], float32, zero padded
  const float* b;         // (rows, rank) float32
  int64_t panel;          // columns of a panel: whole groups, whole words
  int64_t panel_pad;      // a multiple of kPanelStep
  Grid tensor_before;     // one grid per matrix: set for the second pass
  Grid tensor_after;
  RowRange* ranges;  // non-null: only merge and measure
  double (*row_sums)[kSums];
};

constexpr int kTileRows = 6;

struct GroupRange {
  float low, high;
  uint32_t largest;  // magnitude bits; kInfBits or more betrays NaN or Inf
};

enum GroupPath : int { kShortPath, kReciprocalPath, kDivisionPath, kSkipPath };

struct GroupWork {
  GroupRange before_range, after_range;
  Grid before, after;
  float reciprocal_before, reciprocal_after;  // of the steps; 0 for a step of 0
  GroupPath path;
};

struct RowScratch {
  float* merged;      // kTileRows * panel_pad, and a vector more
  int8_t* codes[3];   // panel_pad + 64 each: before, after on the frozen grid, after
  GroupWork* groups;  // kTileRows * groups of a panel
};

// Rows [begin, end) of the task. One function per instruction set.
void rows_plain(const RowTask&, int64_t begin, int64_t end, const RowScratch&, RowTotals&);
void rows_avx2(const RowTask&, int64_t begin, int64_t end, const RowScratch&, RowTotals&);
void rows_avx512(const RowTask&, int64_t begin, int64_t end, const RowScratch&, RowTotals&);

}  // namespace qru
