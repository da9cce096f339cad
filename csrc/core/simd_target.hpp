// The SIMD target in use.
#pragma once

#include <string>
#include <vector>

#include "kernels/kernels.hpp"

namespace worldmodels {

// Names of the targets that this machine can run, "baseline" first, the fastest last.
std::vector<std::string> simd_target_names();

// The target in use: the fastest, or the one chosen by WORLDMODELS_SIMD or set_simd_target. Throws
// std::invalid_argument when WORLDMODELS_SIMD names none that this machine can run.
const Kernels& current_simd_target();

// Throws std::invalid_argument when this machine cannot run `name`.
void set_simd_target(const std::string& name);

// Throws std::invalid_argument when this machine cannot run `name`; the message begins with `argument`.
const Kernels& find_simd_target(const std::string& name, const std::string& argument);

}  // namespace worldmodels
