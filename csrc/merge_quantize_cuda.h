// The CUDA launcher. No CUDA headers here, so that the bindings compile without them.
#pragma once

#include <cstdint>

#include "merge_quantize.h"

namespace qru {

// Device memory the caller owns.
struct CudaScratch {
  double* partials;            // cuda_blocks(p) * kSums
  unsigned long long* faults;  // 2: first row with NaN or Inf, first row whose step overflows; all bits set: none
  uint32_t* range;             // 4, zero; used when per_tensor
  int8_t* codes;               // rows * columns unless cuda_is_fused(p); for 3 bits the packed tensor itself
};

bool cuda_is_fused(const MergeQuantizeParams& p);
int64_t cuda_blocks(const MergeQuantizeParams& p);

// Enqueues on the stream; counts must be zero. Unless fused, an adapter needs `merged`. Returns null or what went
// wrong.
const char* merge_quantize_cuda(const MergeQuantizeParams& p, const CudaScratch& scratch, void* stream);

}  // namespace qru
