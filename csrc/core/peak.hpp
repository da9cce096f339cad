// The machine's peak rate of multiply-adds, the reference for a dream's speed.
#pragma once

#include <optional>

#include "core/parallel.hpp"
#include "kernels/kernels.hpp"

namespace worldmodels {

// Floating-point operations a second (a multiply-add counts as two) of independent multiply-adds on `threads`
// threads, measured for `seconds` seconds. Empty when the poll asked to stop. Throws std::runtime_error as
// check_not_forked.
std::optional<double> multiply_add_rate_unchecked(MultiplyAdds multiply_adds, int threads, double seconds,
                                                  Poll poll = {});

}  // namespace worldmodels
