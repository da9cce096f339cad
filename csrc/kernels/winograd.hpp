// Convolutions of 4x4 windows and stride 2 by Winograd's minimal filtering F(2x2, 2x2) (Lavin & Gray, Fast
// Algorithms for Convolutional Neural Networks, 2016): pixels of odd and even lines and columns make four
// pictures each of which is convolved by 2x2 with stride 1, and a tile of 2x2 outputs takes 9 products where
// it took 16. Along an axis, pixels d0, d1, d2 and weights g0, g1 of one parity make m0 = (d0 - d1) g0,
// m1 = d1 (g0 + g1) and m2 = (d1 - d2) g1, and two outputs are m0 + m1 and m1 - m2. Over frames that lie
// across the lanes and over one frame alone, to the same bits. Included inside an ISA's anonymous namespace,
// after conv.hpp. Steps are distances in floats.

// m0, m1 or m2 along the lines, and along the columns.
struct WinogradProduct {
    int line, column;

    // The one that is added as the `order`th. The middle one is the first: all outputs take it.
    explicit WinogradProduct(int order) {
        const int at = (order + kWinogradProducts / 2) % kWinogradProducts;
        line = at / 3, column = at % 3;
    }
    bool first() const { return line == 1 && column == 1; }
    const float* panels(const ConvView& conv) const {
        return conv.panels + (3 * line + column) * conv.panels_size();
    }
    // 1, 0 or -1: what an output of the tile takes of it.
    int gain(int y, int x) const { return gain_along(line, y) * gain_along(column, x); }

    static int gain_along(int at, int output) { return at == 1 ? 1 : at == 2 * output ? 1 - at : 0; }
};

// out (4, rows, kBlock) = what a product takes of a tile. A pixel of its window is `rows` rows of `vectors`
// vectors: a channel each, or 32 channels of a frame alone.
inline void winograd_inputs(const WinogradProduct& product, const float* window, std::ptrdiff_t line_step,
                            std::ptrdiff_t pixel_step, int rows, int vectors, float* out) {
    const std::ptrdiff_t below = product.line == 1 ? 0 : 2 * line_step;
    const std::ptrdiff_t beside = product.column == 1 ? 0 : 2 * pixel_step;
    window += (product.line == 0 ? 0 : 2 * line_step) + (product.column == 0 ? 0 : 2 * pixel_step);
    for (int odd = 0; odd < 4; ++odd) {
        const float* in = window + odd / 2 * line_step + odd % 2 * pixel_step;
        for (int row = 0; row < rows; ++row, in += kBlock, out += kBlock)
            for (int n = 0; n < vectors; ++n) {
                const float* const d = in + n * kLanes;
                V value = load(d);
                if (below) value -= load(d + below);
                if (beside) {
                    V other = load(d + beside);
                    if (below) other -= load(d + beside + below);
                    value -= other;
                }
                store(out + n * kLanes, value);
            }
    }
}

// R filters of a panel at one tile, for N vectors of lanes; `filters` of them are added to the tile's
// outputs.
template <int R, int N>
inline __attribute__((always_inline)) void winograd_rows(const WinogradProduct& product, const float* panel,
                                                         const float* inputs, int columns, int filters,
                                                         float* out, std::ptrdiff_t line_step,
                                                         std::ptrdiff_t pixel_step) {
    V acc[R][N];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) acc[r][n] = splat(panel[r]);
    accumulate<Float32>(panel + kPanel, inputs, columns, acc);
    for (int y = 0; y < 2; ++y)
        for (int x = 0; x < 2; ++x) {
            const int gain = product.gain(y, x);
            if (gain == 0) continue;
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r)
                if (r < filters)
#pragma GCC unroll 4
                    for (int n = 0; n < N; ++n) {
                        float* const to = out + y * line_step + x * pixel_step + r * kBlock + n * kLanes;
                        const V sum = acc[r][n];
                        store(to, product.first() ? sum : gain > 0 ? load(to) + sum : load(to) - sum);
                    }
        }
}

// One product for a line of tiles, for the vectors from n on, N at once; returns the first that are left. A
// panel is read once for all of them.
template <int R, int N>
inline int winograd_line(const ConvView& conv, const WinogradProduct& product, const float* inputs, int n,
                         int vectors, float* out) {
    const int side = conv.out_side(), columns = conv.columns();
    const std::ptrdiff_t pixel_step = std::ptrdiff_t{conv.filters} * kBlock, line_step = side * pixel_step;
    const float* const panels = product.panels(conv);
    const int end = n + (vectors - n) / N * N;
    in_groups<R>(conv.filters, [&]<int kGroup>(int first) __attribute__((always_inline)) {
        for (int tile = 0; tile < side / 2; ++tile)
            for (int at = n; at < end; at += N)
                winograd_rows<kGroup, N>(
                    product, panels + first / kPanel * conv.panel_size() + first % kPanel,
                    inputs + std::ptrdiff_t{tile} * columns * kBlock + at * kLanes, columns,
                    conv.filters - first,
                    out + 2 * tile * pixel_step + std::ptrdiff_t{first} * kBlock + at * kLanes, line_step,
                    pixel_step);
    });
    return end;
}

// out (out_side, out_side, filters, kBlock) = the layer of in (side, side, channels, kBlock), for the first
// `lanes` lanes; inputs: (out_side / 2, 4 channels, kBlock).
inline void winograd(const ConvView& conv, const float* in, float* inputs, float* out, int lanes) {
    const int vectors = vectors_of(lanes), side = conv.out_side(), tiles = side / 2;
    const std::ptrdiff_t pixel_step = std::ptrdiff_t{conv.channels} * kBlock,
                         line_step = conv.side * pixel_step;
    for (int y = 0; y < tiles; ++y) {
        float* const to = out + std::ptrdiff_t{2} * y * side * conv.filters * kBlock;
        for (int order = 0; order < kWinogradProducts; ++order) {
            const WinogradProduct product(order);
            for (int x = 0; x < tiles; ++x)
                winograd_inputs(product, in + 4 * (y * line_step + x * pixel_step), line_step, pixel_step,
                                conv.channels, vectors, inputs + x * 4 * pixel_step);
            const int n = winograd_line<kRows, 2>(conv, product, inputs, 0, vectors, to);
            winograd_line<kRowsAlone, 1>(conv, product, inputs, n, vectors, to);
        }
        for (std::ptrdiff_t row = 0; conv.relu && row < std::ptrdiff_t{2} * side * conv.filters; ++row)
            for (int n = 0; n < vectors; ++n) {
                float* const at = to + row * kBlock + n * kLanes;
                store(at, maximum(load(at), 0.0F));
            }
    }
}

// A panel's filters at P tiles, from the tile `first` of the frame on.
template <int P>
inline void winograd_tiles(const ConvView& conv, const WinogradProduct& product, const float* panel,
                           const float* inputs, int first, int filters, float* out) {
    Q acc[P][kPanel / 4];
    start_pixels(panel, acc);
    const int side = conv.out_side(), tiles = side / 2, columns = conv.columns();
    accumulate_pixels(panel + kPanel, inputs + std::ptrdiff_t{first} * columns, columns, columns, acc);
    for (int p = 0; p < P; ++p)
        for (int y = 0; y < 2; ++y)
            for (int x = 0; x < 2; ++x) {
                const int line = (first + p) / tiles * 2 + y, column = (first + p) % tiles * 2 + x;
                const int gain = product.gain(y, x);
                float* const to = out + (std::ptrdiff_t{line} * side + column) * conv.filters;
                for (int f = 0; gain != 0 && f < filters; ++f) {
                    const float sum = acc[p][f / 4][f % 4];
                    to[f] = product.first() ? sum : gain > 0 ? to[f] + sum : to[f] - sum;
                }
            }
}

// out (out_side, out_side, filters) = the layer of in (side, side, channels); inputs: (out_side / 2,
// out_side / 2, 4 channels).
inline void winograd_frame(const ConvView& conv, const float* in, float* inputs, float* out) {
    constexpr int kTiles = 4;
    const int side = conv.out_side(), tiles = side / 2, count = tiles * tiles;
    const std::ptrdiff_t pixel_step = conv.channels, line_step = conv.side * pixel_step;
    for (int order = 0; order < kWinogradProducts; ++order) {
        const WinogradProduct product(order);
        for (int tile = 0; tile < count; ++tile)
            winograd_inputs(product, in + 4 * (tile / tiles * line_step + tile % tiles * pixel_step),
                            line_step, pixel_step, conv.channels / kBlock, kBlock / kLanes,
                            inputs + tile * 4 * pixel_step);
        for (int first = 0; first < conv.filters; first += kPanel) {
            const float* const panel = product.panels(conv) + first / kPanel * conv.panel_size();
            const int filters = conv.filters - first < kPanel ? conv.filters - first : kPanel;
            int tile = 0;
            for (; tile + kTiles <= count; tile += kTiles)
                winograd_tiles<kTiles>(conv, product, panel, inputs, tile, filters, out + first);
            for (; tile < count; ++tile)
                winograd_tiles<1>(conv, product, panel, inputs, tile, filters, out + first);
        }
    }
    for (std::ptrdiff_t i = 0; conv.relu && i < std::ptrdiff_t{side} * side * conv.filters; ++i)
        out[i] = out[i] < 0.0F ? 0.0F : out[i];
}

// A layer of either kind: the entries of the table.
inline void convolve(const ConvView& conv, const float* in, float* scratch, float* out, int lanes) {
    if (conv.winograd)
        winograd(conv, in, scratch, out, lanes);
    else
        convolve_directly(conv, in, out, lanes);
}

inline void convolve_frame(const ConvView& conv, const float* in, float* scratch, float* out) {
    if (conv.winograd)
        winograd_frame(conv, in, scratch, out);
    else
        convolve_frame_directly(conv, in, out);
}
