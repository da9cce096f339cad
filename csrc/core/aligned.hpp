// Zeroed storage aligned to a cache line.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <new>
#include <type_traits>

namespace worldmodels {

inline constexpr std::size_t kAlignment = 64;

// The size of an array of two axes.
constexpr std::size_t product(int a, int b) {
    return static_cast<std::size_t>(a) * static_cast<std::size_t>(b);
}

struct AlignedDelete {
    template <class T>
    void operator()(T* p) const {
        ::operator delete[](p, std::align_val_t{kAlignment});
    }
};
template <class T>
using Aligned = std::unique_ptr<T[], AlignedDelete>;
using AlignedFloats = Aligned<float>;

template <class T>
Aligned<T> aligned_zeros(std::size_t count) {
    static_assert(std::is_trivial_v<T>);
    Aligned<T> data(static_cast<T*>(::operator new[](count * sizeof(T), std::align_val_t{kAlignment})));
    std::fill_n(data.get(), count, T{});
    return data;
}

inline AlignedFloats aligned_floats(std::size_t count) {
    return aligned_zeros<float>(count);
}

// Zeroed floats that only grow: scratch memory for the next call.
struct GrowingFloats {
    AlignedFloats data;
    std::size_t size = 0;

    // At least `count` floats; what was there is lost when it grows.
    float* reserve(std::size_t count) {
        if (count > size) {
            size = 0;  // stays so when memory runs out
            data.reset();
            data = aligned_floats(count);
            size = count;
        }
        return data.get();
    }
};

}  // namespace worldmodels
