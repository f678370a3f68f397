// pybind11 only: numbers and addresses in, a status out. No torch headers, so no torch ABI is shared.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "merge_quantize.h"

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
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

py::dict build_info() {
  py::dict info;
  py::list isas;
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
  info["cuda"] = false;
  info["cuda_archs"] = py::list();
  return info;
}

py::dict run_merge_quantize(int64_t rows, int64_t columns, int64_t rank, int64_t group, bool per_tensor, int bits,
                            bool symmetric, float denominator, int scale_dtype, float scaling, int weight_dtype,
                            int a_dtype, int b_dtype, uintptr_t weight, uintptr_t lora_a, uintptr_t lora_b,
                            uintptr_t new_weight, uintptr_t packed, int64_t packed_stride, uintptr_t scales,
                            uintptr_t zeros, uintptr_t merged, uintptr_t counts, uintptr_t sums, int threads,
                            const std::string& isa) {
  qru::MergeQuantizeParams p{};
  p.rows = rows;
  p.columns = columns;
  p.rank = rank;
  p.group = group;
  p.per_tensor = per_tensor;
  p.rule = {bits, symmetric, denominator, scale_dtype};
  p.scaling = scaling;
  p.weight_dtype = weight_dtype;
  p.a_dtype = a_dtype;
  p.b_dtype = b_dtype;
  p.weight = at<const void>(weight);
  p.lora_a = at<const void>(lora_a);
  p.lora_b = at<const void>(lora_b);
  p.new_weight = at<const void>(new_weight);
  p.packed = at<void>(packed);
  p.packed_stride = packed_stride;
  p.scales = at<float>(scales);
  p.zeros = at<float>(zeros);
  p.merged = at<void>(merged);
  p.counts = at<int64_t>(counts);
  p.sums = at<double>(sums);
  const qru::Isa chosen = isa_named(isa);
  qru::MergeQuantizeFault fault;
  {
    py::gil_scoped_release release;
    fault = qru::merge_quantize_cpu(p, threads, chosen);
  }
  if (fault.out_of_memory) throw std::bad_alloc();
  py::dict out;
  out["non_finite_row"] = fault.non_finite_row;
  out["step_overflow_row"] = fault.step_overflow_row;
  return out;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of qru; see qru.ops.";
  m.def("build_info", &build_info);
  m.def("merge_quantize_cpu", &run_merge_quantize, py::kw_only(), py::arg("rows"), py::arg("columns"), py::arg("rank"),
        py::arg("group"), py::arg("per_tensor"), py::arg("bits"), py::arg("symmetric"), py::arg("denominator"),
        py::arg("scale_dtype"), py::arg("scaling"), py::arg("weight_dtype"), py::arg("a_dtype"), py::arg("b_dtype"),
        py::arg("weight"), py::arg("lora_a"), py::arg("lora_b"), py::arg("new_weight"), py::arg("packed"),
        py::arg("packed_stride"), py::arg("scales"), py::arg("zeros"), py::arg("merged"), py::arg("counts"),
        py::arg("sums"), py::arg("threads"), py::arg("isa"));
}
