// Resizing of a screen, in the fixed-point arithmetic of Pillow: across the columns, then across the rows.
// The same bits on every target.

using Bytes16 = std::uint8_t __attribute__((vector_size(16), may_alias));
using Words8 = std::uint16_t __attribute__((vector_size(16), may_alias));
using Ints4 = std::int32_t __attribute__((vector_size(16), may_alias));

// The lower and the upper half, widened.
inline Words8 low_half(Bytes16 x) {
    return reinterpret_cast<Words8>(
        __builtin_shufflevector(x, Bytes16{}, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23));
}
inline Words8 high_half(Bytes16 x) {
    return reinterpret_cast<Words8>(
        __builtin_shufflevector(x, Bytes16{}, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31));
}
inline Ints4 low_half(Words8 x) {
    return reinterpret_cast<Ints4>(__builtin_shufflevector(x, Words8{}, 0, 8, 1, 9, 2, 10, 3, 11));
}
inline Ints4 high_half(Words8 x) {
    return reinterpret_cast<Ints4>(__builtin_shufflevector(x, Words8{}, 4, 12, 5, 13, 6, 14, 7, 15));
}
// Four vectors of numbers from 0 to 255, narrowed.
inline Bytes16 narrowed(Ints4 a, Ints4 b, Ints4 c, Ints4 d) {
    const Words8 ab = __builtin_shufflevector(reinterpret_cast<Words8>(a), reinterpret_cast<Words8>(b), 0, 2,
                                              4, 6, 8, 10, 12, 14);
    const Words8 cd = __builtin_shufflevector(reinterpret_cast<Words8>(c), reinterpret_cast<Words8>(d), 0, 2,
                                              4, 6, 8, 10, 12, 14);
    return __builtin_shufflevector(reinterpret_cast<Bytes16>(ab), reinterpret_cast<Bytes16>(cd), 0, 2, 4, 6,
                                   8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
}

void resize_columns(const TapsView& taps, const std::uint8_t* in, std::uint8_t* out) {
    for (int x = 0; x < kScreenSide; ++x) {
        const std::uint8_t* const pixels = in + std::ptrdiff_t{3} * taps.first[x];
        const std::int32_t* const weights = taps.weights + std::ptrdiff_t{4} * x * taps.count;
        Ints4 sum = Ints4{} + (1 << (kWeightBits - 1));
        for (int t = 0; t < taps.count; ++t) {
            std::int32_t pixel;  // and the first byte of the next one
            Ints4 weight;
            __builtin_memcpy(&pixel, pixels + 3 * t, sizeof pixel);
            __builtin_memcpy(&weight, weights + 4 * t, sizeof weight);
            sum += low_half(low_half(reinterpret_cast<Bytes16>(Ints4{pixel, 0, 0, 0}))) * weight;
        }
        sum >>= kWeightBits;
        const Bytes16 bytes = narrowed(sum, sum, sum, sum);
        __builtin_memcpy(out + 3 * x, &bytes, 4);
    }
}

void resize_rows(const TapsView& taps, const std::uint8_t* rows, std::uint8_t* out) {
    for (int y = 0; y < kScreenSide; ++y) {
        const std::uint8_t* const in = rows + std::ptrdiff_t{kScreenRow} * taps.first[y];
        const std::int32_t* const weights = taps.weights + std::ptrdiff_t{4} * y * taps.count;
        for (int x = 0; x < kScreenRow; x += 16) {
            Ints4 a = Ints4{} + (1 << (kWeightBits - 1)), b = a, c = a, d = a;
            for (int t = 0; t < taps.count; ++t) {
                Bytes16 bytes;
                Ints4 weight;
                __builtin_memcpy(&bytes, in + std::ptrdiff_t{kScreenRow} * t + x, sizeof bytes);
                __builtin_memcpy(&weight, weights + 4 * t, sizeof weight);
                const Words8 low = low_half(bytes), high = high_half(bytes);
                a += low_half(low) * weight;
                b += high_half(low) * weight;
                c += low_half(high) * weight;
                d += high_half(high) * weight;
            }
            const Bytes16 bytes =
                narrowed(a >> kWeightBits, b >> kWeightBits, c >> kWeightBits, d >> kWeightBits);
            __builtin_memcpy(out + y * kScreenRow + x, &bytes, sizeof bytes);
        }
    }
}
