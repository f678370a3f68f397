// pybind11 only: numbers and addresses in, a status out. No torch headers, so no torch ABI is shared.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <new>
#include <stdexcept>
#include <string>

#include "merge_quantize.h"
#ifdef QRU_BUILT_CUDA
#include "merge_quantize_cuda.h"
#endif

namespace py = pybind11;

namespace {

const char* name_of(qru::Isa isa) { return isa == qru::kAvx512 ? "avx512" : isa == qru::kAvx2 ? "avx2" : "plain"; }

qru::Isa isa_named(const std::string& name) {
  if (name == "auto") return qru::best_isa();
  for (qru::Isa isa : {qru::kPlain, qru::kAvx2, qru::kAvx512}) {
    if (name == name_of(isa)) {
      if (!qru::isa_available(isa)) throw std::invalid_argument("this machine or build has no " + name + " path");
      return isa;
    }
  }
  throw std::invalid_argument("isa is '" + name + "'; choose auto, avx512, avx2 or plain");
}

template <typename T>
T number(const py::dict& problem, const char* key) {
  return problem[key].cast<T>();
}

template <typename T>
T* address(const py::dict& problem, const char* key) {
  return reinterpret_cast<T*>(number<uintptr_t>(problem, key));
}

qru::MergeQuantizeParams params_of(const py::dict& problem) {
  qru::MergeQuantizeParams p{};
  p.rows = number<int64_t>(problem, "rows");
  p.columns = number<int64_t>(problem, "columns");
  p.rank = number<int64_t>(problem, "rank");
  p.group = number<int64_t>(problem, "group");
  p.per_tensor = number<bool>(problem, "per_tensor");
  p.rule = {number<int>(problem, "bits"), number<bool>(problem, "symmetric"), number<float>(problem, "denominator"),
            number<int>(problem, "scale_dtype")};
  p.scaling = number<float>(problem, "scaling");
  p.weight_dtype = number<int>(problem, "weight_dtype");
  p.a_dtype = number<int>(problem, "a_dtype");
  p.b_dtype = number<int>(problem, "b_dtype");
  p.weight = address<const void>(problem, "weight");
  p.lora_a = address<const void>(problem, "lora_A");
  p.lora_b = address<const void>(problem, "lora_B");
  p.new_weight = address<const void>(problem, "new_weight");
  p.packed = address<void>(problem, "packed");
  p.packed_stride = number<int64_t>(problem, "packed_stride");
  p.scales = address<float>(problem, "scales");
  p.zeros = address<float>(problem, "zeros");
  p.merged = address<void>(problem, "merged");
  p.counts = address<int64_t>(problem, "counts");
  p.sums = address<double>(problem, "sums");
  p.dequantized = address<void>(problem, "dequantized");
  p.precision = number<int>(problem, "precision");
  return p;
}

py::dict build_info() {
  py::dict info;
  py::list isas, archs;
  for (qru::Isa isa : {qru::kPlain, qru::kAvx2, qru::kAvx512})
    if (qru::isa_available(isa)) isas.append(name_of(isa));
  info["isa"] = name_of(qru::best_isa());
  info["isas"] = isas;
  info["compiler"] = QRU_COMPILER;
#ifdef _OPENMP
  info["openmp"] = true;
#else
  info["openmp"] = false;
#endif
#ifdef QRU_BUILT_CUDA
  info["cuda"] = true;
  const std::string list = QRU_BUILT_CUDA;
  for (size_t from = 0; from <= list.size();) {
    const size_t to = std::min(list.find(',', from), list.size());
    archs.append(list.substr(from, to - from));
    from = to + 1;
  }
#else
  info["cuda"] = false;
#endif
  info["cuda_archs"] = archs;
  return info;
}

// -> (first row with NaN or Inf, first row whose step overflows), -1 for none.
py::tuple run_cpu(const py::dict& problem, int threads, const std::string& isa) {
  const qru::MergeQuantizeParams p = params_of(problem);
  const qru::Isa chosen = isa_named(isa);
  qru::MergeQuantizeFault fault;
  {
    py::gil_scoped_release release;
    fault = qru::merge_quantize_cpu(p, threads, chosen);
  }
  if (fault.out_of_memory) throw std::bad_alloc();
  return py::make_tuple(fault.non_finite_row, fault.step_overflow_row);
}

#ifdef QRU_BUILT_CUDA
py::tuple plan_cuda(const py::dict& problem) {
  const qru::MergeQuantizeParams p = params_of(problem);
  return py::make_tuple(qru::cuda_is_fused(p), qru::cuda_blocks(p));
}

void run_cuda(const py::dict& problem, uintptr_t partials, uintptr_t faults, uintptr_t range, uintptr_t codes,
              uintptr_t stream) {
  const qru::MergeQuantizeParams p = params_of(problem);
  const qru::CudaScratch scratch{reinterpret_cast<double*>(partials), reinterpret_cast<unsigned long long*>(faults),
                                 reinterpret_cast<uint32_t*>(range), reinterpret_cast<int8_t*>(codes)};
  const char* error = qru::merge_quantize_cuda(p, scratch, reinterpret_cast<void*>(stream));
  if (error != nullptr) throw std::runtime_error(std::string("merge_quantize on CUDA: ") + error);
}
#endif

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of qru; see qru.ops.";
  m.def("build_info", &build_info);
  m.def("merge_quantize_cpu", &run_cpu, py::arg("problem"), py::arg("threads"), py::arg("isa"));
#ifdef QRU_BUILT_CUDA
  m.def("plan_cuda", &plan_cuda, py::arg("problem"));
  m.def("merge_quantize_cuda", &run_cuda, py::arg("problem"), py::arg("partials"), py::arg("faults"), py::arg("range"),
        py::arg("codes"), py::arg("stream"));
#endif
}
