// The CPU launcher: lays A out in panels, hands blocks of rows to threads, and adds up what they counted.
//
// A is read once and copied to float32 panels [k][columns of a panel], which every block of rows then streams from the
// cache. Threads take blocks in any order; counts are integers and each row's float sums are kept apart and added in
// row order at the end, so neither the number of threads nor their luck shows in a result.
#include <cstdlib>
#include <new>

#include "cpu_rows.h"

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#define QRU_X86 1
#endif
#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef __linux__
#include <sys/mman.h>
#endif

namespace qru {
namespace {

constexpr int64_t kBlockRows = 16 * kTileRows;
constexpr int64_t kPanelColumns = 512;

// Default rounding and no flush to zero while a kernel runs, whatever the calling program has set.
class FloatMode {
 public:
#ifdef QRU_X86
  FloatMode() : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
  ~FloatMode() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#endif
};

struct Buffer {
  void* data = nullptr;
  ~Buffer() { free(data); }
  template <typename T>
  T* get(int64_t count) {
    const size_t bytes = (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64 + 64;
    data = aligned_alloc(64, bytes);
    if (data != nullptr) memset(data, 0, bytes);
    return static_cast<T*>(data);
  }
};

inline float element(const void* p, int dtype, int64_t i) {
  if (dtype == kFloat32) return static_cast<const float*>(p)[i];
  const uint16_t h = static_cast<const uint16_t*>(p)[i];
  return dtype == kBFloat16 ? bfloat16_to_float(h) : half_to_float(h);
}

// n columns of a row of A from `at` on, in the order in which a panel holds them; returns the largest magnitude's bits.
template <int kDtype>
uint32_t lay_out(const void* a, int64_t at, int64_t n, int weight_dtype, float* to) {
  uint32_t largest = 0;
  for (int64_t first = 0; first < n; first += kPair, to += kPair) {
    const int64_t pair = n - first < kPair ? n - first : kPair;
    for (int64_t j = 0; j < pair; ++j) {
      const float x = element(a, kDtype, at + first + j);
      const uint32_t magnitude = bits_of(x) & ~kSignBit;
      largest = magnitude > largest ? magnitude : largest;
      to[weight_dtype == kBFloat16 ? place_in_pair(kBFloat16, j) : j] = x;
    }
  }
  return largest;
}

bool is_finite(float x) { return (bits_of(x) & ~kSignBit) < kInfBits; }

// A panel is whole groups and whole packed bytes, and small enough for the cache where groups are.
int64_t panel_columns(const MergeQuantizeParams& p) {
  const int64_t some = p.group % kPair == 0 ? 1 : 8;  // eight codes of any width fill whole bytes
  const int64_t groups = kPanelColumns / p.group / some * some;
  const int64_t columns = (groups < some ? some : groups) * p.group;
  return columns < p.columns ? columns : p.columns;
}

// Fresh output memory costs a page fault every 4 KiB, a tenth of the run time of a large matrix; ask for large pages.
// Advice only: where it is refused nothing changes.
void advise_large_pages(void* p, int64_t bytes) {
#ifdef __linux__
  constexpr uintptr_t kLarge = uintptr_t{1} << 21;
  const uintptr_t from = (reinterpret_cast<uintptr_t>(p) + kLarge - 1) / kLarge * kLarge;
  const uintptr_t to = (reinterpret_cast<uintptr_t>(p) + static_cast<uintptr_t>(bytes)) / kLarge * kLarge;
  if (to > from) madvise(reinterpret_cast<void*>(from), to - from, MADV_HUGEPAGE);
#else
  (void)p, (void)bytes;
#endif
}

using Rows = void (*)(const RowTask&, int64_t, int64_t, const RowScratch&, RowTotals&);

Rows rows_for(Isa isa) {
#ifdef QRU_BUILT_X86_ISAS
  if (isa == kAvx512) return rows_avx512;
  if (isa == kAvx2) return rows_avx2;
#endif
  (void)isa;
  return rows_plain;
}

void first_of(int64_t& kept, int64_t row) {
  if (row >= 0 && (kept < 0 || row < kept)) kept = row;
}

// Runs every block of rows; false when memory ran out.
bool run_rows(const RowTask& task, int threads, Isa isa, RowTotals& totals) {
  const MergeQuantizeParams& p = *task.params;
  const Rows rows = rows_for(isa);
  int64_t block = p.rows / (4 * threads) / kTileRows * kTileRows;
  block = block < kTileRows ? kTileRows : block > kBlockRows ? kBlockRows : block;
  const int64_t blocks = (p.rows + block - 1) / block;
  bool enough = true;
  memset(&totals, 0, sizeof totals);
  totals.non_finite_row = totals.step_overflow_row = -1;
  const int team = blocks < threads ? static_cast<int>(blocks) : threads;
#pragma omp parallel num_threads(team)
  {
    const FloatMode mode;
    Buffer products, merged, codes, groups;
    RowScratch scratch{};
    scratch.products = products.get<float>(kTileRows * task.panel_pad);
    scratch.merged = merged.get<char>(kTileRows * task.panel_pad * 4);
    scratch.codes = codes.get<int8_t>(task.panel + kBlock);
    scratch.groups = groups.get<GroupWork>(kTileRows * (task.panel / p.group));
    RowTotals mine;
    memset(&mine, 0, sizeof mine);
    mine.non_finite_row = mine.step_overflow_row = -1;
    const bool ready = scratch.products != nullptr && scratch.merged != nullptr && scratch.codes != nullptr &&
                       scratch.groups != nullptr;
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < blocks; ++i) {
      if (!ready) continue;
      const int64_t end = (i + 1) * block < p.rows ? (i + 1) * block : p.rows;
      rows(task, i * block, end, scratch, mine);
    }
#pragma omp critical(qru_totals)
    {
      enough = enough && ready;
      for (int i = 0; i < kCounts + 256; ++i) totals.counts[i] += mine.counts[i];
      first_of(totals.non_finite_row, mine.non_finite_row);
      first_of(totals.step_overflow_row, mine.step_overflow_row);
    }
  }
  return enough;
}

}  // namespace

bool isa_available(Isa isa) {
  if (isa == kPlain) return true;
#if defined(QRU_X86) && defined(QRU_BUILT_X86_ISAS)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (isa == kAvx2) return avx2;
  return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

Isa best_isa() { return isa_available(kAvx512) ? kAvx512 : isa_available(kAvx2) ? kAvx2 : kPlain; }

MergeQuantizeFault merge_quantize_cpu(const MergeQuantizeParams& params, int threads, Isa isa) {
  const FloatMode mode;
  MergeQuantizeParams p = params;
  MergeQuantizeFault fault{-1, -1, 0};
  RowTask task{};
  task.params = &p;
  task.panel = panel_columns(p);
  task.group_pad = (p.group + kPair - 1) / kPair * kPair;
  task.panel_pad = (task.panel / p.group * task.group_pad + kPanelStep - 1) / kPanelStep * kPanelStep;

  Buffer a_buffer, b_buffer, sums_buffer, ranges_buffer;
  double* sums = sums_buffer.get<double>(p.rows * kSums);
  if (sums == nullptr) return {-1, -1, 1};
  task.row_sums = reinterpret_cast<double (*)[kSums]>(sums);

  if (p.rank > 0) {
    const int64_t panels = (p.columns + task.panel - 1) / task.panel;
    float* a = a_buffer.get<float>(panels * p.rank * task.panel_pad);
    if (a == nullptr) return {-1, -1, 1};
    task.a_panels = a;
    int unusable = 0;
#pragma omp parallel for num_threads(threads) reduction(| : unusable)
    for (int64_t panel = 0; panel < panels; ++panel) {
      const int64_t column0 = panel * task.panel;
      const int64_t columns = p.columns - column0 < task.panel ? p.columns - column0 : task.panel;
      for (int64_t k = 0; k < p.rank; ++k) {
        float* to = a + (panel * p.rank + k) * task.panel_pad;
        for (int64_t first = 0; first < columns; first += p.group, to += task.group_pad) {
          const int64_t at = k * p.columns + column0 + first;
          const auto lay = p.a_dtype == kFloat32    ? lay_out<kFloat32>
                           : p.a_dtype == kBFloat16 ? lay_out<kBFloat16>
                                                    : lay_out<kFloat16>;
          unusable |= lay(p.lora_a, at, p.group, p.weight_dtype, to) >= kInfBits;
        }
      }
    }
    task.b = static_cast<const float*>(p.lora_b);
    float* b = nullptr;
    if (p.b_dtype != kFloat32) {
      b = b_buffer.get<float>(p.rows * p.rank);
      if (b == nullptr) return {-1, -1, 1};
      task.b = b;
    }
    for (int64_t i = 0; i < p.rows * p.rank; ++i) {
      const float x = element(p.lora_b, p.b_dtype, i);
      if (b != nullptr) b[i] = x;
      unusable |= !is_finite(x);
    }
    if (unusable) return {0, -1, 0};
  }

  if (p.packed != nullptr) advise_large_pages(p.packed, p.rows * p.packed_stride);
  const int64_t weight_bytes = p.rows * p.columns * (p.weight_dtype == kFloat32 ? 4 : 2);
  if (p.merged != nullptr) advise_large_pages(p.merged, weight_bytes);
  if (p.dequantized != nullptr) advise_large_pages(p.dequantized, weight_bytes);

  RowTotals totals;
  if (p.per_tensor) {
    // First pass: merge into `merged` and take the range. The second quantizes what the first one wrote.
    Range* ranges = ranges_buffer.get<Range>(p.rows);
    if (ranges == nullptr) return {-1, -1, 1};
    task.ranges = ranges;
    if (!run_rows(task, threads, isa, totals)) return {-1, -1, 1};
    if (totals.non_finite_row >= 0) return {totals.non_finite_row, -1, 0};
    Range all = ranges[0];
    for (int64_t row = 1; row < p.rows; ++row) {
      all.low_before = fminf(all.low_before, ranges[row].low_before);
      all.high_before = fmaxf(all.high_before, ranges[row].high_before);
      all.low_after = fminf(all.low_after, ranges[row].low_after);
      all.high_after = fmaxf(all.high_after, ranges[row].high_after);
    }
    task.ranges = nullptr;
    task.tensor_after = grid_of_range(all.low_after, all.high_after, p.rule);
    task.tensor_before =
        p.counts != nullptr ? grid_of_range(all.low_before, all.high_before, p.rule) : task.tensor_after;
    if (!is_finite(task.tensor_before.step) || !is_finite(task.tensor_after.step)) return {-1, 0, 0};
    if (p.scales != nullptr) p.scales[0] = task.tensor_after.step;
    if (p.zeros != nullptr) p.zeros[0] = task.tensor_after.zero;
    if (p.rank > 0) {
      p.new_weight = p.merged;
      p.rank = 0;
      p.merged = nullptr;
    }
  }
  if (!run_rows(task, threads, isa, totals)) return {-1, -1, 1};
  fault.non_finite_row = totals.non_finite_row;
  fault.step_overflow_row = totals.step_overflow_row;
  if (p.counts == nullptr) return fault;
  if (p.per_tensor) {
    totals.counts[3] = task.tensor_before.step != task.tensor_after.step;
    totals.counts[4] = task.tensor_before.step == 0.0f;
  }
  totals.counts[kCounts] = p.rows * p.columns - totals.counts[1];
  const int bins = 1 << p.rule.bits;
  for (int i = 0; i < kCounts + bins; ++i) p.counts[i] = totals.counts[i];
  for (int i = 0; i < kSums; ++i) p.sums[i] = 0.0;
  for (int64_t row = 0; row < p.rows; ++row)
    for (int i = 0; i < kSums; ++i) p.sums[i] += task.row_sums[row][i];
  return fault;
}

}  // namespace qru
