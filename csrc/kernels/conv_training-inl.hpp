// Convolutions of V's training: matrix products whose operands are read where they lie.
//
// P is the arithmetic of the products, with P::kPack of them in one float of an operand. Every sum runs over
// its products in order with fused multiply-adds: its bits do not depend on its place.

inline constexpr int kConvRows = kMatmulRows < 8 ? kMatmulRows : 8;  // as many addresses as fit the registers

// out[r] + at (N vectors) += the sum of left[r][offsets[s] + k] * panel[s * length + k] over s and k.
template <class P, int N, int R>
inline void add_rows(const float* const* left, const std::ptrdiff_t* offsets, int segments, int length,
                     const float* panel, float* const* out, std::ptrdiff_t at) {
    VecF acc[R][N];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) acc[r][n] = load_unaligned(out[r] + at + n * kLanes);
    for (int s = 0; s < segments; ++s) {
        const float* x[R];
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) x[r] = left[r] + offsets[s];
        for (int k = 0; k < length; ++k, panel += N * kLanes) {
            VecF w[N];
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n) w[n] = load(panel + n * kLanes);
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) {
                const VecF each = P::broadcast(x[r] + k);
#pragma GCC unroll 4
                for (int n = 0; n < N; ++n) acc[r][n] = P::multiply_add(w[n], each, acc[r][n]);
            }
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) store_unaligned(out[r] + at + n * kLanes, acc[r][n]);
}

template <class P, int N, int R = kConvRows>
inline void add_group(int rows, const float* const* left, const std::ptrdiff_t* offsets, int segments,
                      int length, const float* panel, float* const* out, std::ptrdiff_t at) {
    if constexpr (R > 1)
        if (rows < R) return add_group<P, N, R - 1>(rows, left, offsets, segments, length, panel, out, at);
    add_rows<P, N, R>(left, offsets, segments, length, panel, out, at);
}

template <class P, int N>
void add_products(int rows, const float* const* left, const std::ptrdiff_t* offsets, int segments, int length,
                  const float* panel, float* const* out, std::ptrdiff_t at) {
    for (int first = 0; first < rows; first += kConvRows)
        add_group<P, N>(rows - first < kConvRows ? rows - first : kConvRows, left + first, offsets, segments,
                        length, panel, out + first, at);
}

// out + r * stride (kMatmulColumns) = or += the sum of left(m)[r] * right(m)[...] over m.
template <class P, int R, class Left, class Right>
inline void add_outer_rows(int count, Left left, Right right, bool from_zero, float* out,
                           std::ptrdiff_t stride) {
    VecF acc[R][kMatmulVectors];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int n = 0; n < kMatmulVectors; ++n)
            acc[r][n] = from_zero ? VecF{} : load_unaligned(out + r * stride + n * kLanes);
    for (int m = 0; m < count; ++m) {
        const float* const x = left(m);
        VecF y[kMatmulVectors];
#pragma GCC unroll 4
        for (int n = 0; n < kMatmulVectors; ++n) y[n] = load_unaligned(right(m) + n * kLanes);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const VecF each = P::broadcast(x + r);
#pragma GCC unroll 4
            for (int n = 0; n < kMatmulVectors; ++n) acc[r][n] = P::multiply_add(y[n], each, acc[r][n]);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int n = 0; n < kMatmulVectors; ++n) store_unaligned(out + r * stride + n * kLanes, acc[r][n]);
}

template <class P, int R = kMatmulRows>
void add_outer_products(int rows, int count, const float* left, const float* const* right, std::ptrdiff_t at,
                        bool from_zero, float* out, std::ptrdiff_t stride) {
    if constexpr (R > 1)
        if (rows < R)
            return add_outer_products<P, R - 1>(rows, count, left, right, at, from_zero, out, stride);
    add_outer_rows<P, R>(
        count, [=](int m) { return left + m * R; }, [=](int m) { return right[m] + at; }, from_zero, out,
        stride);
}

template <class P, int R = kMatmulRows>
void add_window_products(int rows, int count, const float* const* left, std::ptrdiff_t at, const float* right,
                         bool from_zero, float* out, std::ptrdiff_t stride) {
    if constexpr (R > 1)
        if (rows < R)
            return add_window_products<P, R - 1>(rows, count, left, at, right, from_zero, out, stride);
    add_outer_rows<P, R>(
        count, [=](int m) { return left[m] + at; }, [=](int m) { return right + m * stride; }, from_zero, out,
        stride);
}

// before (count, channels) = gradient, 0 where output, after the ReLU, is 0. sums (channels) += its rows.
void relu_backward(std::int64_t count, int channels, const float* output, const float* gradient,
                   float* before, float* sums) {
    for (std::int64_t i = 0; i < count; ++i, output += channels, gradient += channels, before += channels) {
        int c = 0;
        for (; c + kLanes <= channels; c += kLanes) {
            const VecF kept = load_unaligned(output + c) <= 0.0F ? VecF{} : load_unaligned(gradient + c);
            store_unaligned(before + c, kept);
            store_unaligned(sums + c, load_unaligned(sums + c) + kept);
        }
        for (; c < channels; ++c) {
            before[c] = output[c] <= 0.0F ? 0.0F : gradient[c];
            sums[c] += before[c];
        }
    }
}

template <class P>
constexpr ConvTrainingKernels conv_training_kernels() {
    return {
        .pack = P::kPack,
        .columns = kMatmulColumns,
        .lanes = kLanes,
        .rows = kMatmulRows,
        .add_products = add_products<P, kMatmulVectors>,
        .add_vector_products = add_products<P, 1>,
        .add_outer_products = add_outer_products<P>,
        .add_window_products = add_window_products<P>,
        .pack_neighbours = pack_neighbours,
        .pack_rows = pack_rows,
        .pack_right_columns = pack_right_columns<P>,
        .relu_backward = relu_backward,
    };
}
