// Lossless compression of frames as HDF5's filters LZF and Fletcher32 store them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace worldmodels {

// Bytes of the longest input: positions fit 16 bits.
inline constexpr std::size_t kLzfLongest = 65'535;

// Compresses `size` <= kLzfLongest bytes to the LZF format. Returns the number of bytes written to out, less
// than `size`, or 0 where they would not be fewer; out holds `size` bytes. The output is a function of the
// input alone.
std::size_t lzf_compress_unchecked(const std::uint8_t* in, std::size_t size, std::uint8_t* out);

// HDF5's Fletcher32 of big-endian 16-bit words.
std::uint32_t fletcher32_unchecked(const std::uint8_t* in, std::size_t size);

}  // namespace worldmodels
