// Direct convolutions: of frames across the lanes, and of one frame. Every sum runs over its window in the
// same order, so both give the same bits.

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

// Of one frame: vectors hold the filters of a panel, and sums of P pixels in G panels are computed at once.
// The last vector reads the floats that follow (kPanelPadding after the last panel); those sums are dropped.
inline constexpr int kSumsAtOnce = kLanes / 2;  // pixels times panels

// Sums of G panels, panel_step apart, at P pixels: their biases.
template <int G, int P>
inline __attribute__((always_inline)) void start_pixels(const float* panels, std::ptrdiff_t panel_step,
                                                        VecF (&acc)[G][P][kPanelVectors]) {
#pragma GCC unroll 8
    for (int g = 0; g < G; ++g)
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p)
#pragma GCC unroll 3
            for (int v = 0; v < kPanelVectors; ++v)
                acc[g][p][v] = load_unaligned(panels + g * panel_step + v * kLanes);
}

// Accumulates G panels at P pixels from their inputs; returns the weights that follow.
template <int G, int P>
inline __attribute__((always_inline)) const float* accumulate_pixels(const float* w,
                                                                     std::ptrdiff_t panel_step,
                                                                     const float* const (&in)[P], int count,
                                                                     VecF (&acc)[G][P][kPanelVectors]) {
    for (int k = 0; k < count; ++k, w += kPanel) {
        VecF x[P];
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) x[p] = splat(in[p][k]);
#pragma GCC unroll 8
        for (int g = 0; g < G; ++g)
#pragma GCC unroll 3
            for (int v = 0; v < kPanelVectors; ++v) {
                const VecF weight = load_unaligned(w + g * panel_step + v * kLanes);
#pragma GCC unroll 8
                for (int p = 0; p < P; ++p) acc[g][p][v] = fma(weight, x[p], acc[g][p][v]);
            }
    }
    return w;
}

// The sums in memory, where they can be indexed: in registers an index costs a store of all of them at every
// k.
template <int G, int P>
struct PixelSums {
    alignas(64) float of[G][P][kPanelVectors * kLanes];

    explicit PixelSums(const VecF (&acc)[G][P][kPanelVectors]) {
#pragma GCC unroll 8
        for (int g = 0; g < G; ++g)
#pragma GCC unroll 8
            for (int p = 0; p < P; ++p)
#pragma GCC unroll 3
                for (int v = 0; v < kPanelVectors; ++v) store(of[g][p] + v * kLanes, acc[g][p][v]);
    }
};

// Calls f<G>(first) for groups of panels from `first` on, at most G at once.
template <int G, class F>
inline __attribute__((always_inline)) void in_panel_groups(int first, int panels, F f) {
    for (; first + G <= panels; first += G) f.template operator()<G>(first);
    if constexpr (G > 1)
        if (first < panels) in_panel_groups<G / 2>(first, panels, f);
}

// Calls f<P, G>(pixel, panel) for groups of pixels from `first` on and of panels, at most kSumsAtOnce at
// once.
template <int P = kSumsAtOnce, class F>
inline __attribute__((always_inline)) void in_pixel_groups(int first, int pixels, int panels, F f) {
    const int next = first + (pixels - first) / P * P;
    if (first < next)
        in_panel_groups<kSumsAtOnce / P>(0, panels, [&]<int G>(int panel) __attribute__((always_inline)) {
            for (int pixel = first; pixel < next; pixel += P) f.template operator()<P, G>(pixel, panel);
        });
    if constexpr (P > 1)
        if (next < pixels) in_pixel_groups<P / 2>(next, pixels, panels, f);
}

// G panels at P pixels of one line; `filters` follow the first one's.
template <int P, int G>
inline void convolve_pixels(const ConvView& conv, const float* panels, const float* window, int filters,
                            float* out) {
    VecF acc[G][P][kPanelVectors];
    start_pixels(panels, conv.panel_size(), acc);
    const float* w = panels + kPanel;
    for (int line = 0; line < conv.kernel; ++line) {
        const float* at[P];
        for (int p = 0; p < P; ++p) at[p] = window + (line * conv.side + p * conv.stride) * conv.channels;
        w = accumulate_pixels(w, conv.panel_size(), at, conv.kernel * conv.channels, acc);
    }
    const PixelSums<G, P> sums(acc);
    for (int g = 0; g < G; ++g)
        for (int p = 0; p < P; ++p) {
            float* const to = out + p * conv.filters + g * kPanel;
            for (int f = 0; f < kPanel && g * kPanel + f < filters; ++f)
                to[f] = conv.relu && sums.of[g][p][f] < 0.0F ? 0.0F : sums.of[g][p][f];
        }
}

// out (out_side, out_side, filters) = the layer of in (side, side, channels).
inline void convolve_frame_directly(const ConvView& conv, const float* in, float* out) {
    const int side = conv.out_side();
    for (int y = 0; y < side; ++y) {
        const float* const line = in + std::ptrdiff_t{conv.stride} * y * conv.side * conv.channels;
        float* const to = out + std::ptrdiff_t{y} * side * conv.filters;
        in_pixel_groups(0, side, conv.panels_count(), [&]<int P, int G>(int x, int panel) {
            convolve_pixels<P, G>(conv, conv.panels + panel * conv.panel_size(),
                                  line + std::ptrdiff_t{conv.stride} * x * conv.channels,
                                  conv.filters - panel * kPanel,
                                  to + std::ptrdiff_t{x} * conv.filters + panel * kPanel);
        });
    }
}
