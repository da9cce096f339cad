// Zeroed float storage aligned to a cache line.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>

namespace worldmodels {

inline constexpr std::size_t kAlignment = 64;

struct Free {
    void operator()(float* p) const { ::operator delete[](p, std::align_val_t{kAlignment}); }
};
using AlignedFloats = std::unique_ptr<float[], Free>;

inline AlignedFloats aligned_floats(std::size_t count) {
    AlignedFloats data(
        static_cast<float*>(::operator new[](count * sizeof(float), std::align_val_t{kAlignment})));
    for (std::size_t i = 0; i < count; ++i) data[i] = 0.0F;
    return data;
}

}  // namespace worldmodels
