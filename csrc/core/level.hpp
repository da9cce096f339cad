// The SIMD level in use.
#pragma once

#include <string>
#include <vector>

#include "kernels/kernels.hpp"

namespace worldmodels {

// Names of the levels this machine can run, plainest first.
std::vector<std::string> level_names();

// The level in use: the last of level_names(), or what WORLDMODELS_SIMD or set_level says.
// Throws std::invalid_argument when WORLDMODELS_SIMD names none of them.
const Kernels& current_level();

// Throws std::invalid_argument when this machine cannot run `name`.
void set_level(const std::string& name);

// Throws std::invalid_argument when this machine cannot run `name`; `source` is what the message blames.
const Kernels& find_level(const std::string& name, const std::string& source);

}  // namespace worldmodels
