// The kernels of a precision of the products.
#pragma once

#include <string>

#include "bindings/arguments.hpp"
#include "core/simd_target.hpp"

namespace worldmodels {

// What a SIMD target has for bfloat16. Throws where it has nothing.
template <class T>
T* required(T* of_bfloat16, const Kernels& target) {
    if (of_bfloat16 == nullptr)
        throw py::value_error(std::string("precision: bfloat16 needs the SIMD level avx512_bf16, got ") +
                              target.name);
    return of_bfloat16;
}

// Of training, in the SIMD target in use.
template <class T>
const T& training_kernels(const std::string& precision, T Kernels::* float32, const T* Kernels::* bfloat16,
                          T TestKernels::* emulated) {
    const Kernels& target = current_simd_target();
    if (precision == "float32") return target.*float32;
    if (precision == "bfloat16") return *required(target.*bfloat16, target);
    if (precision == "emulated_bfloat16") return target.testing.*emulated;
    throw py::value_error("precision: expected float32 or bfloat16, got '" + precision + "'");
}

}  // namespace worldmodels
