// Direct convolutions: of frames across the lanes, and of one frame. Every sum runs over its window in the
// same order, so both give the same bits. Needs VecF4, four floats.

// R rows of a panel at one pixel, for N vectors of lanes; `rows` of them are stored.
template <int R, int N>
inline __attribute__((always_inline)) void convolve_rows(const ConvView& conv, const float* panel,
                                                         const float* window, int rows, float* out) {
    VecF acc[R][N];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) acc[r][n] = splat(panel[r]);
    const float* w = panel + kPanel;
    for (int line = 0; line < conv.kernel; ++line)
        w = accumulate<Float32>(w, window + line * conv.side * conv.channels * kBlock,
                                conv.kernel * conv.channels, acc);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
        if (r < rows)
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n)
                store(out + r * kBlock + n * kLanes, conv.relu ? maximum(acc[r][n], 0.0F) : acc[r][n]);
}

// Calls f<rows>(first) for groups of filters, none of which leaves its panel: R at once, or four at once
// where the last panel has no more than eight.
template <int R, class F>
inline __attribute__((always_inline)) void in_groups(int filters, F f) {
    constexpr int kSmallGroup = 4;
    int first = 0;
    for (; first < filters && (first % kPanel != 0 || filters - first > 2 * kSmallGroup); first += R)
        f.template operator()<R>(first);
    for (; first < filters; first += kSmallGroup) f.template operator()<kSmallGroup>(first);
}

// One line of pixels. A panel is read once for all of them.
template <int R, int N>
inline void convolve_line(const ConvView& conv, const float* line, float* out) {
    in_groups<R>(conv.filters, [&]<int kGroup>(int first) __attribute__((always_inline)) {
        for (int x = 0; x < conv.out_side(); ++x)
            convolve_rows<kGroup, N>(conv, conv.panels + first / kPanel * conv.panel_size() + first % kPanel,
                                     line + std::ptrdiff_t{conv.stride} * x * conv.channels * kBlock,
                                     conv.filters - first,
                                     out + (std::ptrdiff_t{conv.filters} * x + first) * kBlock);
    });
}

// out (out_side, out_side, filters, kBlock) = the layer of in (side, side, channels, kBlock), for the first
// `lanes` lanes.
inline void convolve_directly(const ConvView& conv, const float* in, float* out, int lanes) {
    const int vectors = vectors_of(lanes), side = conv.out_side();
    for (int y = 0; y < side; ++y) {
        const float* const line = in + std::ptrdiff_t{conv.stride} * y * conv.side * conv.channels * kBlock;
        float* const to = out + std::ptrdiff_t{y} * side * conv.filters * kBlock;
        int n = 0;
        for (; n + 2 <= vectors; n += 2) convolve_line<kRows, 2>(conv, line + n * kLanes, to + n * kLanes);
        if (n < vectors) convolve_line<kRowsAlone, 1>(conv, line + n * kLanes, to + n * kLanes);
    }
}

// Sums of a panel's filters at P pixels: their biases.
template <int P, int N>
inline __attribute__((always_inline)) void start_pixels(const float* panel, VecF4 (&acc)[P][N]) {
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 3
        for (int q = 0; q < N; ++q) __builtin_memcpy(&acc[p][q], panel + 4 * q, sizeof(VecF4));
}

// Accumulates a panel's filters at P pixels from their inputs; returns the weights that follow.
template <int P, int N>
inline __attribute__((always_inline)) const float* accumulate_pixels(const float* w,
                                                                     const float* const (&in)[P], int count,
                                                                     VecF4 (&acc)[P][N]) {
    for (int k = 0; k < count; ++k, w += kPanel) {
        VecF4 weight[N];
#pragma GCC unroll 3
        for (int q = 0; q < N; ++q) __builtin_memcpy(&weight[q], w + 4 * q, sizeof(VecF4));
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) {
            const VecF4 x = in[p][k] - VecF4{};
#pragma GCC unroll 3
            for (int q = 0; q < N; ++q) acc[p][q] = fma(weight[q], x, acc[p][q]);
        }
    }
    return w;
}

// A panel's filters at P pixels of one line.
template <int P>
inline void convolve_pixels(const ConvView& conv, const float* panel, const float* window, int filters,
                            float* out) {
    VecF4 acc[P][kPanel / 4];
    start_pixels(panel, acc);
    const float* w = panel + kPanel;
    for (int line = 0; line < conv.kernel; ++line) {
        const float* at[P];
        for (int p = 0; p < P; ++p) at[p] = window + (line * conv.side + p * conv.stride) * conv.channels;
        w = accumulate_pixels(w, at, conv.kernel * conv.channels, acc);
    }
    for (int p = 0; p < P; ++p)
        for (int f = 0; f < filters; ++f) {
            const float sum = acc[p][f / 4][f % 4];
            out[p * conv.filters + f] = conv.relu && sum < 0.0F ? 0.0F : sum;
        }
}

// out (out_side, out_side, filters) = the layer of in (side, side, channels).
inline void convolve_frame_directly(const ConvView& conv, const float* in, float* out) {
    constexpr int kPixels = 4;
    const int side = conv.out_side();
    for (int first = 0; first < conv.filters; first += kPanel) {
        const float* const panel = conv.panels + first / kPanel * conv.panel_size();
        const int filters = conv.filters - first < kPanel ? conv.filters - first : kPanel;
        for (int y = 0; y < side; ++y) {
            const float* const line = in + std::ptrdiff_t{conv.stride} * y * conv.side * conv.channels;
            float* const to = out + std::ptrdiff_t{y} * side * conv.filters + first;
            const auto at = [&](int x) { return line + std::ptrdiff_t{conv.stride} * x * conv.channels; };
            int x = 0;
            for (; x + kPixels <= side; x += kPixels)
                convolve_pixels<kPixels>(conv, panel, at(x), filters, to + std::ptrdiff_t{x} * conv.filters);
            for (; x < side; ++x)
                convolve_pixels<1>(conv, panel, at(x), filters, to + std::ptrdiff_t{x} * conv.filters);
        }
    }
}
