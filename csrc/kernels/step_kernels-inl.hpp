// The kernels of a dream's step, in the order in which they depend on each other.
// clang-format off
#include "kernels/vecmath-inl.hpp"
#include "kernels/draws-inl.hpp"
#include "kernels/body-inl.hpp"
#include "kernels/step-inl.hpp"
#include "kernels/peak-inl.hpp"
// clang-format on
