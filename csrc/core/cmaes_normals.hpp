// Standard normals in double, drawn with Philox.
#pragma once

#include <cstdint>

namespace worldmodels {

// out[0..count) ~ N(0, 1), a pure function of (seed, generation, row): out[i] does not depend on count, the
// thread or what was drawn before. Box-Muller; the elementary functions are series of our own, so that no
// libm decides the bits.
void fill_normals(std::uint64_t seed, std::uint64_t generation, std::uint32_t row, std::int64_t count,
                  double* out);

}  // namespace worldmodels
