// Every kernel and an ISA's table of them, in the order in which they depend on each other.
//
// A header named -inl does not stand alone. Each ISA's file defines its vector types and primitives in an
// anonymous namespace of its own and includes the kernels there, so that the linker never mixes ISAs.
// clang-format off
#include "kernels/step_kernels-inl.hpp"
#include "kernels/conv-inl.hpp"
#include "kernels/winograd-inl.hpp"
#include "kernels/convolve-inl.hpp"
#include "kernels/deconv-inl.hpp"
#include "kernels/tile-inl.hpp"
#include "kernels/normals-inl.hpp"
#include "kernels/bfloat16-inl.hpp"
#include "kernels/matmul-inl.hpp"
#include "kernels/rnn_training-inl.hpp"
#include "kernels/conv_training-inl.hpp"
#include "kernels/resize-inl.hpp"
#include "kernels/probes-inl.hpp"
#include "kernels/table-inl.hpp"
// clang-format on
