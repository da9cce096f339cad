// Binding of the compression of frames for the chunks of the episode store.
#include <pybind11/pybind11.h>

#include <cstring>

#include "bindings/arguments.hpp"
#include "core/encoder.hpp"
#include "core/lzf.hpp"
#include "core/parallel.hpp"

namespace worldmodels {
namespace {

constexpr std::size_t kFrame = std::size_t{kFrameSide} * kFrameSide * kFrameChannels;
constexpr std::size_t kChecksum = sizeof(std::uint32_t);

// The chunks of frames (n, 64, 64, 3): their bytes one after the other, where each ends, and whether it is
// compressed. A frame that LZF does not make smaller stays as it is.
py::tuple compress(const py::array& frames) {
    const auto* const pixels =
        checked<std::uint8_t>(frames, "frames", {"n", kFrameSide, kFrameSide, kFrameChannels});
    const py::ssize_t count = frames.shape(0);
    py::array_t<std::uint8_t> bytes(count * static_cast<py::ssize_t>(kFrame + kChecksum));
    py::array_t<std::int64_t> ends(count);
    py::array_t<bool> compressed(count);
    std::uint8_t* const out = bytes.mutable_data();
    std::int64_t* const to_ends = ends.mutable_data();
    bool* const to_compressed = compressed.mutable_data();
    InterruptiblePool pool({interrupted, nullptr});
    {
        const py::gil_scoped_release release;
        std::size_t at = 0;
        for (py::ssize_t i = 0; i < count && !pool.stopped(); ++i, pool.tick(0)) {
            const std::uint8_t* const frame = pixels + static_cast<std::size_t>(i) * kFrame;
            std::size_t size = lzf_compress_unchecked(frame, kFrame, out + at);
            to_compressed[i] = size > 0;
            if (size == 0) std::memcpy(out + at, frame, size = kFrame);
            const std::uint32_t checksum = fletcher32_unchecked(out + at, size);
            for (unsigned byte = 0; byte < kChecksum; ++byte)  // little-endian
                out[at + size + byte] = static_cast<std::uint8_t>(checksum >> (8 * byte));
            at += size + kChecksum;
            to_ends[i] = static_cast<std::int64_t>(at);
        }
    }
    if (pool.stopped()) throw py::error_already_set();
    return py::make_tuple(bytes, ends, compressed);
}

}  // namespace
}  // namespace worldmodels

void bind_compression(pybind11::module_& m) {
    namespace py = pybind11;
    using namespace py::literals;
    m.def("compress_frames", &worldmodels::compress, "frames"_a);
}
