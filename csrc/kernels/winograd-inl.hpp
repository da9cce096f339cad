// Convolutions of 4x4 windows and stride 2 by Winograd's minimal filtering (Lavin & Gray, Fast Algorithms for
// Convolutional Neural Networks, 2016), of frames across the lanes and of one frame, with the same bits.
//
// The pixels of odd and even lines and columns form four images, each convolved by 2x2 with stride 1. A tile
// of 3x3 outputs, F(3x3, 2x2), takes 16 products instead of 36. Where threes leave a remainder, a tile of two
// takes 3 products along that axis instead of 4. Along an axis, pixels d0 to d3 and weights g0, g1 of one
// parity give
//     m0 = (d0 - d2) g0, m1 = (d1 + d2) (g0 + g1) / 2, m2 = (d1 - d3) g1 and m3 = (d2 - d1) (g0 - g1) / 2;
// three outputs are m0 + m1 + m3, m1 - m3 and m1 - m2 + m3. Two outputs, of d0 to d2,
//     m0 = (d0 - d1) g0, m1 = (d1 + d1) (g0 + g1) / 2 and m2 = (d1 - d2) g1,
// are m0 + m1 and m1 - m2. Needs conv-inl.hpp. Steps are distances in floats.

// A tile along one axis: its first output and the number of its outputs.
struct WinogradTile {
    int first, size;

    WinogradTile(const ConvView& conv, int number)
        : first(3 * number), size(number < conv.tiles_of_three() ? 3 : 2) {
        if (size == 2) first -= number - conv.tiles_of_three();
    }
    int products() const { return size + 1; }
    // The even pixels d0 to d3 of its products; for two outputs d0, d1, d1, d2.
    int pixel(int number) const { return 2 * (first + (number < 2 ? number : size + number - 3)); }
};

// The pixel factors of the products m0 to m3; only tiles of three have m3.
struct WinogradPixels {
    VecF product[4];

    WinogradPixels(VecF first, VecF second, VecF third, VecF fourth)
        : product{first - third, second + third, second - fourth, third - second} {}
};

// One product of a tile (one of m0 to m3 along the lines and along the columns) and its share in the outputs.
struct WinogradProduct {
    int number;
    int count;  // of outputs that take it; 0 where the tile does not have the product
    int output[9];
    float sign[9];

    const float* panels(const ConvView& conv) const { return conv.panels + number * conv.panels_size(); }
};

// The products of a tile of lines x columns outputs, numbered `step` per line, in the order of summation. The
// first, m1 along both axes, enters all outputs and has the biases.
struct WinogradProducts {
    int count;
    WinogradProduct all[16];

    WinogradProducts(const ConvView& conv, int lines, int columns, int step)
        : count(conv.products() * conv.products()) {
        for (int order = 0; order < count; ++order) {
            const int number = (order + conv.products() + 1) % count;
            const int line = number / conv.products(), column = number % conv.products();
            WinogradProduct& product = all[order];
            product.number = number, product.count = 0;
            for (int y = 0; y < lines; ++y)
                for (int x = 0; x < columns; ++x) {
                    const int gain = gain_along(lines, line, y) * gain_along(columns, column, x);
                    if (gain == 0) continue;
                    product.output[product.count] = y * step + x;
                    product.sign[product.count++] = static_cast<float>(gain);
                }
        }
    }
    // The factor (-1, 0 or 1) of a product in an output.
    static int gain_along(int size, int product, int output) {
        if (product == 0) return output == 0 ? 1 : 0;
        if (product == 2) return output == size - 1 ? -1 : 0;
        if (product == 3) return size < 3 ? 0 : output == 1 ? -1 : 1;
        return 1;
    }
};

// The transformed inputs of a tile: rows of N vectors, kStep apart, for all channels of even lines' even
// pixels, then of even lines' odd pixels, then of odd lines. Consecutive products are product_step apart. A
// pixel of the frame has rows too, row_step apart: a channel in N vectors of lanes, or N vectors of channels.
// Products that a tile does not have are left unwritten.
template <int N, int kEach, int kStep>
inline void winograd_inputs(const ConvView& conv, const WinogradTile& down, const WinogradTile& across,
                            const float* frame, std::ptrdiff_t pixel_step, std::ptrdiff_t row_step,
                            float* out, std::ptrdiff_t product_step) {
    const std::ptrdiff_t line_step = conv.side * pixel_step;
    std::ptrdiff_t line[4], pixel[4];
    for (int i = 0; i < 4; ++i) {
        line[i] = down.pixel(i) * line_step;
        pixel[i] = across.pixel(i) * pixel_step;
    }
    const int lines = down.products(), columns = across.products();
    for (int odd = 0; odd < 4; ++odd) {
        const float* in = frame + odd / 2 * line_step + odd % 2 * pixel_step;
        for (const float* const end = in + pixel_step; in != end; in += row_step, out += kStep) {
            VecF along[4][4][N];
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i)
#pragma GCC unroll 2
                for (int n = 0; n < N; ++n) {
                    const float* const from = in + line[i] + n * kLanes;
                    const WinogradPixels pixels(load(from + pixel[0]), load(from + pixel[1]),
                                                load(from + pixel[2]), load(from + pixel[3]));
#pragma GCC unroll 4
                    for (int j = 0; j < 4; ++j) along[i][j][n] = pixels.product[j];
                }
            for (int j = 0; j < columns; ++j)
#pragma GCC unroll 2
                for (int n = 0; n < N; ++n) {
                    const WinogradPixels pixels(along[0][j][n], along[1][j][n], along[2][j][n],
                                                along[3][j][n]);
                    float* const to = out + j * product_step + n * kLanes;
#pragma GCC unroll 4
                    for (int i = 0; i < 4; ++i)
                        if (i < lines) store(to + kEach * i * product_step, pixels.product[i]);
                }
        }
    }
}

// R filters of a panel at one tile, for N vectors of lanes: the sum of all products.
template <int R, int N, int kEach>
inline __attribute__((always_inline)) void winograd_rows(const ConvView& conv, const WinogradTile& down,
                                                         const WinogradTile& across,
                                                         const WinogradProducts& products,
                                                         const float* inputs, int first, float* out) {
    const int filters = conv.filters - first;
    VecF sums[9][R][N] = {};
    for (int order = 0; order < products.count; ++order) {
        const WinogradProduct& product = products.all[order];
        if (product.count == 0) continue;
        const float* const panel = product.panels(conv) + first / kPanel * conv.panel_size() + first % kPanel;
        VecF acc[R][N];
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n) acc[r][n] = splat(panel[r]);
        accumulate<Float32, kEach * kEach * N * kLanes>(panel + kPanel, inputs + product.number * N * kLanes,
                                                        conv.columns(), acc);
        for (int i = 0; i < product.count; ++i) {
            VecF(&to)[R][N] = sums[product.output[i]];
            const VecF sign = splat(product.sign[i]);
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
                for (int n = 0; n < N; ++n) to[r][n] = fma(sign, acc[r][n], to[r][n]);
        }
    }
    for (int y = 0; y < down.size; ++y)
        for (int x = 0; x < across.size; ++x) {
            const VecF(&sum)[R][N] = sums[3 * y + x];
            float* const pixel =
                out + ((down.first + y) * conv.out_side() + across.first + x) * conv.filters * kBlock;
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r)
                if (r < filters)
#pragma GCC unroll 4
                    for (int n = 0; n < N; ++n)
                        store(pixel + (first + r) * kBlock + n * kLanes,
                              conv.relu ? maximum(sum[r][n], 0.0F) : sum[r][n]);
        }
}

// N vectors of lanes, R filters at once.
template <int R, int N, int kEach>
inline void winograd_lanes(const ConvView& conv, const float* in, float* inputs, float* out) {
    const std::ptrdiff_t pixel_step = std::ptrdiff_t{conv.channels} * kBlock;
    for (int y = 0; y < conv.tiles(); ++y)
        for (int x = 0; x < conv.tiles(); ++x) {
            const WinogradTile down(conv, y), across(conv, x);
            const WinogradProducts products(conv, down.size, across.size, 3);
            winograd_inputs<N, kEach, kEach * kEach * N * kLanes>(conv, down, across, in, pixel_step, kBlock,
                                                                  inputs, N * kLanes);
            in_groups<R>(conv.filters, [&]<int kGroup>(int first) __attribute__((always_inline)) {
                winograd_rows<kGroup, N, kEach>(conv, down, across, products, inputs, first, out);
            });
        }
}

// out (out_side, out_side, filters, kBlock) = the layer of in (side, side, channels, kBlock), for the first
// `lanes` lanes; inputs: (4 channels, products of both axes, up to two vectors of lanes).
template <int kEach>
inline void winograd(const ConvView& conv, const float* in, float* inputs, float* out, int lanes) {
    const int vectors = vectors_of(lanes);
    int n = 0;
    for (; n + 2 <= vectors; n += 2)
        winograd_lanes<kRows, 2, kEach>(conv, in + n * kLanes, inputs, out + n * kLanes);
    if (n < vectors) winograd_lanes<kRowsAlone, 1, kEach>(conv, in + n * kLanes, inputs, out + n * kLanes);
}

// to[0..4) += sign * sums[0..4), exact but for the sum's rounding.
inline void add_four(float sign, const float* sums, float* to) {
    using Four = float __attribute__((vector_size(16), may_alias));
    Four x, y;
    __builtin_memcpy(&x, sums, sizeof x);
    __builtin_memcpy(&y, to, sizeof y);
    y += sign * x;
    __builtin_memcpy(to, &y, sizeof y);
}

// G panels at P of the tiles that have a product, from tile `first` on; inputs:
// (products, tiles, tiles, 4 channels).
template <int P, int G>
inline void winograd_tiles(const ConvView& conv, const WinogradProducts (&products)[2][2], int order,
                           const float* inputs, int first, int wide, int panel, float* out) {
    const int number = products[0][0].all[order].number;
    const int side = conv.out_side(), tiles = conv.tiles();
    const float* at[P];
    for (int p = 0; p < P; ++p) {
        const int tile = (number * tiles + (first + p) / wide) * tiles + (first + p) % wide;
        at[p] = inputs + std::ptrdiff_t{tile} * conv.columns();
    }
    const float* const panels = products[0][0].all[order].panels(conv) + panel * conv.panel_size();
    VecF acc[G][P][kPanelVectors];
    start_pixels(panels, conv.panel_size(), acc);
    accumulate_pixels(panels + kPanel, conv.panel_size(), at, conv.columns(), acc);
    const PixelSums<G, P> sums(acc);
    for (int p = 0; p < P; ++p) {
        const WinogradTile down(conv, (first + p) / wide), across(conv, (first + p) % wide);
        const WinogradProduct& product = products[down.size - 2][across.size - 2].all[order];
        float* const tile = out + (std::ptrdiff_t{down.first} * side + across.first) * conv.filters;
        for (int g = 0; g < G; ++g) {
            const int filter = (panel + g) * kPanel;
            for (int i = 0; i < product.count; ++i)
                for (int q = 0; q < kPanel && filter + q < conv.filters; q += 4)
                    add_four(product.sign[i], sums.of[g][p] + q,
                             tile + std::ptrdiff_t{product.output[i]} * conv.filters + filter + q);
        }
    }
}

// out (out_side, out_side, filters) = the layer of in (side, side, channels); inputs: (products, tiles,
// tiles, 4 channels).
template <int kEach>
inline void winograd_frame(const ConvView& conv, const float* in, float* inputs, float* out) {
    const int side = conv.out_side(), tiles = conv.tiles(), columns = conv.columns();
    for (int tile = 0; tile < tiles * tiles; ++tile)
        winograd_inputs<1, kEach, kLanes>(
            conv, WinogradTile(conv, tile / tiles), WinogradTile(conv, tile % tiles), in, conv.channels,
            kLanes, inputs + std::ptrdiff_t{tile} * columns, std::ptrdiff_t{tiles} * tiles * columns);
    const std::ptrdiff_t values = std::ptrdiff_t{side} * side * conv.filters;
    for (std::ptrdiff_t i = 0; i < values; ++i) out[i] = 0.0F;
    const WinogradProducts products[2][2] = {{{conv, 2, 2, side}, {conv, 2, 3, side}},
                                             {{conv, 3, 2, side}, {conv, 3, 3, side}}};
    for (int order = 0; order < products[0][0].count; ++order) {
        // The tiles that have a product are the first ones along either axis.
        const int number = products[0][0].all[order].number;
        const int high = number / kEach == 3 ? conv.tiles_of_three() : tiles;
        const int wide = number % kEach == 3 ? conv.tiles_of_three() : tiles;
        in_pixel_groups(0, high * wide, conv.panels_count(), [&]<int P, int G>(int tile, int panel) {
            winograd_tiles<P, G>(conv, products, order, inputs, tile, wide, panel, out);
        });
    }
    for (std::ptrdiff_t i = 0; conv.relu && i < values; ++i) out[i] = out[i] < 0.0F ? 0.0F : out[i];
}
