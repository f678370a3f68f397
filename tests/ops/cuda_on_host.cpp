// The CUDA kernels compiled for the CPU, with every array between pages that may not be touched.
//   c++ -std=c++17 -O1 -shared -fPIC -ffp-contract=off -fno-strict-aliasing -I csrc tests/ops/cuda_on_host.cpp
#define QRU_DEVICE_HEADER "../tests/ops/cuda_on_host.h"
#include <sys/mman.h>
#include <unistd.h>

#include "../../csrc/merge_quantize_cuda.cu"

namespace {

// A copy of an array that ends where an unreadable page begins (up to the 16 bytes that vectors are aligned to).
class Guarded {
 public:
  Guarded(void* from, int64_t bytes) : from_(from), bytes_(static_cast<size_t>(bytes)) {
    if (from == nullptr) return;
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE)), padded = (bytes_ + 15) / 16 * 16;
    const size_t inner = (padded + page - 1) / page * page;
    size_ = inner + 2 * page;
    char* all = static_cast<char*>(mmap(nullptr, size_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (all == MAP_FAILED || mprotect(all + page, inner, PROT_READ | PROT_WRITE) != 0) abort();
    all_ = all;
    data = all + page + inner - padded;
    memcpy(data, from, bytes_);
  }
  ~Guarded() {
    if (from_ == nullptr) return;
    memcpy(from_, data, bytes_);
    munmap(all_, size_);
  }
  Guarded(const Guarded&) = delete;
  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }
  void* data = nullptr;

 private:
  void* from_;
  size_t bytes_, size_ = 0;
  void* all_ = nullptr;
};

}  // namespace

// One launch on host memory. faults: 2, all bits set. Returns null, or what went wrong.
extern "C" const char* run_on_host(const qru::MergeQuantizeParams* given, unsigned long long* faults, unsigned seed) {
  qru::MergeQuantizeParams p = *given;
  host::seed = seed;
  const auto size = [](int dtype) { return dtype == qru::kFloat32 ? 4 : 2; };
  const int64_t count = p.rows * p.columns, grids = p.per_tensor ? 1 : p.rows * (p.columns / p.group);
  const bool fused = qru::cuda_is_fused(p);
  std::vector<char> between(!fused && p.rank > 0 && p.merged == nullptr ? count * size(p.weight_dtype) : 0);
  if (!between.empty()) p.merged = between.data();
  const Guarded weight(const_cast<void*>(p.weight), count * size(p.weight_dtype));
  const Guarded lora_a(const_cast<void*>(p.lora_a), p.rank * p.columns * size(p.a_dtype));
  const Guarded lora_b(const_cast<void*>(p.lora_b), p.rows * p.rank * size(p.b_dtype));
  const Guarded new_weight(const_cast<void*>(p.new_weight), count * size(p.weight_dtype));
  const Guarded packed(p.packed, p.rows * p.packed_stride);
  const Guarded scales(p.scales, grids * 4), zeros(p.zeros, grids * 4);
  const Guarded merged(p.merged, count * size(p.weight_dtype));
  const Guarded dequantized(p.dequantized, count * size(p.weight_dtype));
  const Guarded counts(p.counts, (qru::kCounts + (1 << p.rule.bits)) * 8), sums(p.sums, qru::kSums * 8);
  p.weight = weight.data, p.lora_a = lora_a.data, p.lora_b = lora_b.data, p.new_weight = new_weight.data;
  p.packed = packed.data, p.scales = scales.as<float>(), p.zeros = zeros.as<float>(), p.merged = merged.data;
  p.counts = counts.as<int64_t>(), p.sums = sums.as<double>(), p.dequantized = dequantized.data;

  std::vector<double> partials(static_cast<size_t>(qru::cuda_blocks(p) * qru::kSums), NAN);
  std::vector<uint32_t> range(4, 0);
  std::vector<int8_t> codes(fused || p.packed == nullptr ? 1 : static_cast<size_t>(count));
  const Guarded partials_guard(partials.data(), static_cast<int64_t>(partials.size()) * 8);
  const Guarded range_guard(range.data(), 16);
  const Guarded codes_guard(codes.data(), static_cast<int64_t>(codes.size()));
  const qru::CudaScratch scratch{p.counts == nullptr ? nullptr : partials_guard.as<double>(), faults,
                                 range_guard.as<uint32_t>(),
                                 p.rule.bits == 3 ? packed.as<int8_t>() : codes_guard.as<int8_t>()};
  return qru::merge_quantize_cuda(p, scratch, nullptr);
}
