// The machine's peak of multiply-adds, which the speed of a dream is measured against.
#pragma once

#include "kernels/kernels.hpp"

namespace worldmodels {

// Floating-point operations a second (a multiply-add counts as two) of independent multiply-adds on `threads`
// threads, over about `seconds` seconds. Throws std::runtime_error (fork).
double multiply_add_rate_unchecked(MultiplyAdds multiply_adds, int threads, double seconds);

}  // namespace worldmodels
