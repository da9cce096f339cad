// V's decoder, of one frame: a folded matrix, two transposed convolutions with filters across the vector, and
// one to pixels. A sum's order does not depend on the vector's length. Needs conv-inl.hpp.

// Sums of P pixels, `step` floats apart, in G vectors of filters: acc[p][g] += w[k][filter] * in[p][k]. Rows
// of w are `stride` floats apart.
template <int P, int G>
inline __attribute__((always_inline)) const float* accumulate_filters(const float* w, std::ptrdiff_t stride,
                                                                      const float* in, std::ptrdiff_t step,
                                                                      int count, VecF (&acc)[P][G]) {
    for (int k = 0; k < count; ++k, ++in, w += stride) {
        VecF weight[G];
#pragma GCC unroll 8
        for (int g = 0; g < G; ++g) weight[g] = load(w + g * kLanes);
#pragma GCC unroll 12
        for (int p = 0; p < P; ++p) {
            const VecF x = splat(in[p * step]);
#pragma GCC unroll 8
            for (int g = 0; g < G; ++g) acc[p][g] = fma(weight[g], x, acc[p][g]);
        }
    }
    return w;
}

// out (count * kFilterPanel) = max(0, W z + b); panels: (count, 1 + latent, kFilterPanel).
inline void point_panels(const float* panels, const float* z, int latent, int count, float* out) {
    constexpr int G = kFilterPanel / kLanes;
    for (int panel = 0; panel < count; ++panel, out += kFilterPanel) {
        VecF acc[1][G];
#pragma GCC unroll 8
        for (int g = 0; g < G; ++g) acc[0][g] = load(panels + g * kLanes);
        panels = accumulate_filters(panels + kFilterPanel, kFilterPanel, z, 0, latent, acc);
#pragma GCC unroll 8
        for (int g = 0; g < G; ++g) store(out + g * kLanes, maximum(acc[0][g], 0.0F));
    }
}

// P pixels of a line of one parity, from column x on, for two vectors of filters from `filter` on.
template <int P>
inline void deconvolve_pixels(const DeconvView& conv, const DeconvLine& line, const float* in, int x,
                              int filter, float* out) {
    VecF acc[P][2];
#pragma GCC unroll 12
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 2
        for (int g = 0; g < 2; ++g) acc[p][g] = load(conv.bias + filter + g * kLanes);
    for (int u = line.first_tap; u < line.last_tap; ++u) {
        const float* const row = in + (line.y - u) * conv.in_stride() + line.column(x) * conv.channels;
        accumulate_filters(line.weights + u * line.tap_size + filter, conv.filters, row, conv.channels,
                           line.across * conv.channels, acc);
    }
#pragma GCC unroll 12
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 2
        for (int g = 0; g < 2; ++g)
            store(out + std::ptrdiff_t{2} * (x + p) * conv.filters + filter + g * kLanes,
                  maximum(acc[p][g], 0.0F));
}

// All pixels of a line from column x on, at most P at once.
template <int P>
inline void deconvolve_line(const DeconvView& conv, const DeconvLine& line, const float* in, int x,
                            int filter, float* out) {
    for (; x + P <= line.pixels; x += P) deconvolve_pixels<P>(conv, line, in, x, filter, out);
    if constexpr (P > 1)
        if (x < line.pixels) deconvolve_line<P - 1>(conv, line, in, x, filter, out);
}

// out (out_side, out_side, filters), its lines out_stride apart, = max(0, the layer of `in`).
inline void deconvolve(const DeconvView& conv, const float* in, float* out, std::ptrdiff_t out_stride) {
    for (int parity = 0; parity < 4; ++parity)
        for (int filter = 0; filter < conv.filters; filter += 2 * kLanes)
            for (int y = 0; 2 * y + parity / 2 < conv.out_side(); ++y) {
                const DeconvLine line(conv, parity, y);
                deconvolve_line<kRows>(conv, line, in, 0, filter,
                                       out + (2 * y + parity / 2) * out_stride + parity % 2 * conv.filters);
            }
}

// P blocks of 2x2 pixels from block x on, whose 12 numbers are a panel: tops, then bottoms, of three colours.
template <int P>
inline void pixel_blocks(const DeconvView& conv, const DeconvLine& line, const float* in, int x, float* out) {
    VecF acc[1][P][kPanelVectors];
    start_pixels(conv.bias, 0, acc);
    for (int u = line.first_tap; u < line.last_tap; ++u) {
        const float* at[P];
        for (int p = 0; p < P; ++p)
            at[p] = in + (line.y - u) * conv.in_stride() + line.column(x + p) * conv.channels;
        accumulate_pixels(line.weights + u * line.tap_size, 0, at, line.across * conv.channels, acc);
    }
    const PixelSums<1, P> sums(acc);
    for (int p = 0; p < P; ++p)
        for (int i = 0; i < kPanel; ++i) out[i / 6 * kFrameLine + 6 * (x + p) + i % 6] = sums.of[0][p][i];
}

// frame (64, 64, 3) = sigmoid(the last layer), as bytes.
inline void decode_pixels(const DeconvView& conv, const float* in, std::uint8_t* frame) {
    alignas(64) float lines[2 * kFrameLine];
    for (int y = 0; y < conv.out_side() / 2; ++y) {
        const DeconvLine line(conv, 0, y);
        for (int x = 0; x < conv.out_side() / 2; x += kSumsAtOnce)
            pixel_blocks<kSumsAtOnce>(conv, line, in, x, lines);
        std::uint8_t* const to = frame + y * 2 * kFrameLine;
        for (int i = 0; i < 2 * kFrameLine; i += kLanes) {
            const VecF brightness = fma(tanh(load(lines + i) * 0.5F), splat(127.5F), splat(128.0F));
            const VecI byte =
                __builtin_convertvector(brightness > 0.0F ? brightness : VecF{}, VecI);  // no NaN
            for (int lane = 0; lane < kLanes; ++lane) to[i + lane] = static_cast<std::uint8_t>(byte[lane]);
        }
    }
}

// frame (64, 64, 3) = the decoded z (latent).
void decode_frame(const DecoderView& decoder, const float* z, const DecoderBuffers& buffers,
                  std::uint8_t* frame) {
    const DeconvView* const layers = decoder.layers;
    const std::ptrdiff_t panel = std::ptrdiff_t{kFilterPanel} * (1 + decoder.latent);
    const int side = layers[0].side, panels = side * layers[0].channels / kFilterPanel;  // of a line
    for (int y = 0; y < side; ++y)
        point_panels(decoder.point + y * panels * panel, z, decoder.latent, panels,
                     buffers.inputs[0] + y * layers[0].in_stride() + kPadding * layers[0].channels);
    for (int layer = 0; layer < 2; ++layer) {
        const DeconvView& next = layers[layer + 1];
        deconvolve(layers[layer], buffers.inputs[layer], buffers.inputs[layer + 1] + kPadding * next.channels,
                   next.in_stride());
    }
    decode_pixels(layers[2], buffers.inputs[2], frame);
}
