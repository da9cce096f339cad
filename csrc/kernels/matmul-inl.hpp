// Matrix products of training: out (rows, columns) = start + left (rows, depth) @ right (depth, columns).
//
// P is the arithmetic of the products, with P::kPack successive k in one float, a word, of a packed operand.
// Every sum runs over k in order with fused multiply-adds: its bits do not depend on its place in the matrix.
//
// Packed left: groups of at most kMatmulRows rows, each as it is the fastest to pack: from its rows (blocks
// of the depth, rows, kMatmulDepth words), from its columns (words of the depth, rows). Packed right: panels
// of kMatmulColumns columns, each (words of the depth, kMatmulColumns).

inline constexpr int kMatmulVectors = 2;
inline constexpr int kMatmulColumns = kMatmulVectors * kLanes;
inline constexpr int kMatmulDepth = 256;  // words of a block: its part of a panel fits the L1 cache

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
    constexpr int kBlockDepth = kMatmulDepth * P::kPack;
    for_row_groups(rows, [&](int first, int count) {
        for (int k = 0; k < depth; k += kBlockDepth)
            for (int r = 0; r < count; ++r, to += kMatmulDepth)
                P::pack_row(depth - k < kBlockDepth ? depth - k : kBlockDepth, x[first + r] + k, to);
    });
}

// Row k of an operand of `depth` rows from column `at` on, and the next one where a word holds it.
template <class P>
inline void pack_columns(const float* const* x, int k, int depth, int at, int count, float* to) {
    P::pack_columns(count, x[k] + at, P::kPack > 1 && k + 1 < depth ? x[k + 1] + at : nullptr, to);
}

// Left operand from its columns: x[k] (rows), from row `at` on.
template <class P>
void pack_left_columns(const float* const* x, int at, int rows, int depth, float* to) {
    for_row_groups(rows, [&](int first, int count) {
        for (int k = 0; k < depth; k += P::kPack, to += count)
            pack_columns<P>(x, k, depth, at + first, count, to);
    });
}

// Right operand from its rows: x[k] (columns, readable up to whole panels).
template <class P>
void pack_right(const float* const* x, int depth, int columns, float* to) {
    for (int first = 0; first < columns; first += kMatmulColumns)
        for (int k = 0; k < depth; k += P::kPack, to += kMatmulColumns)
            pack_columns<P>(x, k, depth, first, kMatmulColumns, to);
}

// Right operand from its columns: x[c] (depth), in whole panels.
template <class P>
void pack_right_columns(const float* const* x, int depth, int columns, float* to) {
    constexpr int kWords = 64;
    float words[kMatmulColumns][kWords];
    for (int first = 0; first < columns; first += kMatmulColumns)
        for (int k = 0; k < depth; k += kWords * P::kPack) {
            const int count = depth - k < kWords * P::kPack ? depth - k : kWords * P::kPack;
            for (int c = 0; c < kMatmulColumns; ++c) P::pack_row(count, x[first + c] + k, words[c]);
            for (int i = 0; i < (count + P::kPack - 1) / P::kPack; ++i, to += kMatmulColumns)
                for (int c = 0; c < kMatmulColumns; ++c) to[c] = words[c][i];
        }
}

// How a packed left operand lies: steps between the rows of a group and between successive k; words of a row.
struct FromRows {
    static constexpr int row_step(int) { return kMatmulDepth; }
    static constexpr int step(int) { return 1; }
    static constexpr int row_words(int words) {
        return (words + kMatmulDepth - 1) / kMatmulDepth * kMatmulDepth;
    }
};
struct FromColumns {
    static constexpr int row_step(int) { return 1; }
    static constexpr int step(int rows) { return rows; }
    static constexpr int row_words(int words) { return words; }
};

template <class P, class Left, int R>
inline void matmul_tile(const float* left, const float* right, int depth, const float* start,
                        float* const* out, int column) {
    VecF acc[R][kMatmulVectors];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int n = 0; n < kMatmulVectors; ++n)
            acc[r][n] = load((start != nullptr ? start : out[r]) + column + n * kLanes);
    accumulate<P, kMatmulColumns, Left::step(R), Left::row_step(R)>(left, right, depth, acc);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int n = 0; n < kMatmulVectors; ++n) store(out[r] + column + n * kLanes, acc[r][n]);
}

template <class P, class Left, int R = kMatmulRows>
inline void matmul_group(int rows, const float* left, const float* right, int depth, const float* start,
                         float* const* out, int column) {
    if constexpr (R > 1)
        if (rows < R) return matmul_group<P, Left, R - 1>(rows, left, right, depth, start, out, column);
    matmul_tile<P, Left, R>(left, right, depth, start, out, column);
}

// out[r] (columns rounded up to whole panels) = start + row r of left @ right; += where start is null.
template <class P, class Left>
void matmul(const float* left, const float* right, int rows, int columns, int depth, const float* start,
            float* const* out) {
    const int words = (depth + P::kPack - 1) / P::kPack;
    for (int column = 0; column < columns; column += kMatmulColumns, right += words * kMatmulColumns)
        for (int k = 0; k < words; k += kMatmulDepth) {
            const int count = words - k < kMatmulDepth ? words - k : kMatmulDepth;
            for_row_groups(rows, [&](int first, int group) {
                matmul_group<P, Left>(
                    group, left + std::ptrdiff_t{first} * Left::row_words(words) + k * group,
                    right + k * kMatmulColumns, count, k == 0 ? start : nullptr, out + first, column);
            });
        }
}

// sums (columns) += columns from `at` on of the rows x[k].
inline void add_rows(const float* const* x, int depth, int at, int columns, float* sums) {
    for (int first = 0; first < columns; first += kLanes) {
        const int count = columns - first < kLanes ? columns - first : kLanes;
        if (count == kLanes) {
            VecF sum = load_unaligned(sums + first);
            for (int k = 0; k < depth; ++k) sum += load_unaligned(x[k] + at + first);
            store_unaligned(sums + first, sum);
        } else {
            for (int k = 0; k < depth; ++k)
                for (int c = first; c < columns; ++c) sums[c] += x[k][at + c];
        }
    }
}
