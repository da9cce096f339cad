// Matrix products of training: out (rows, columns) += left (rows, depth) @ right (depth, columns).
//
// P is the arithmetic of the products, with P::kPack successive k in one float of a packed operand. Every sum
// runs over k in order with fused multiply-adds: its bits do not depend on its place in the matrix.
//
// Packed left: groups of at most kMatmulRows rows, each (depth, rows of the group). Packed right: panels of
// kMatmulColumns columns, each (depth, kMatmulColumns).

inline constexpr int kMatmulVectors = 2;
inline constexpr int kMatmulColumns = kMatmulVectors * kLanes;
inline constexpr int kMatmulDepth = 256;  // of a block: its part of a panel fits the L1 cache

// Calls f(first, rows) for groups of nearly equal size.
template <class F>
inline void for_row_groups(int rows, F f) {
    const int groups = (rows + kMatmulRows - 1) / kMatmulRows;
    for (int g = 0, first = 0; g < groups; ++g) {
        const int next = static_cast<int>(std::int64_t{rows} * (g + 1) / groups);
        f(first, next - first);
        first = next;
    }
}

// Left operand from its rows: x[r] (depth).
template <class P>
void pack_left(const float* const* x, int rows, int depth, float* to) {
    for_row_groups(rows, [&](int first, int count) {
        for (int k = 0; k < depth; k += P::kPack)
            for (int r = 0; r < count; ++r) *to++ = P::word(x[first + r], k, depth);
    });
}

// Left operand from its columns: x[k] (rows), from row `at` on.
template <class P>
void pack_left_columns(const float* const* x, int at, int rows, int depth, float* to) {
    for_row_groups(rows, [&](int first, int count) {
        for (int k = 0; k < depth; k += P::kPack)
            for (int r = 0; r < count; ++r) *to++ = P::column_word(x, at + first + r, k, depth);
    });
}

// Right operand from its rows: x[k] (columns, readable up to whole panels).
template <class P>
void pack_right(const float* const* x, int depth, int columns, float* to) {
    for (int first = 0; first < columns; first += kMatmulColumns)
        for (int k = 0; k < depth; k += P::kPack, to += kMatmulColumns)
            for (int c = 0; c < kMatmulColumns; ++c) to[c] = P::column_word(x, first + c, k, depth);
}

template <class P, int R>
inline void matmul_tile(const float* left, const float* right, int depth, bool from_zero, float* const* out,
                        int column) {
    VecF acc[R][kMatmulVectors];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int n = 0; n < kMatmulVectors; ++n)
            acc[r][n] = from_zero ? VecF{} : load(out[r] + column + n * kLanes);
    accumulate<P, kMatmulColumns, R>(left, right, depth, acc);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int n = 0; n < kMatmulVectors; ++n) store(out[r] + column + n * kLanes, acc[r][n]);
}

template <class P, int R = kMatmulRows>
inline void matmul_group(int rows, const float* left, const float* right, int depth, bool from_zero,
                         float* const* out, int column) {
    if constexpr (R > 1)
        if (rows < R) return matmul_group<P, R - 1>(rows, left, right, depth, from_zero, out, column);
    matmul_tile<P, R>(left, right, depth, from_zero, out, column);
}

// out[r] (columns rounded up to whole panels) = or += row r of left @ right.
template <class P>
void matmul(const float* left, const float* right, int rows, int columns, int depth, bool accumulate,
            float* const* out) {
    const int words = (depth + P::kPack - 1) / P::kPack;
    for (int column = 0; column < columns; column += kMatmulColumns, right += words * kMatmulColumns)
        for (int k = 0; k < words; k += kMatmulDepth) {
            const int count = words - k < kMatmulDepth ? words - k : kMatmulDepth;
            for_row_groups(rows, [&](int first, int group) {
                matmul_group<P>(group, left + std::ptrdiff_t{first} * words + k * group,
                                right + k * kMatmulColumns, count, k == 0 && !accumulate, out + first,
                                column);
            });
        }
}
