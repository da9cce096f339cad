// Standard normals in float64 for CMA-ES, by Philox and Box-Muller, in plain loops that the compiler
// vectorises. No multiply-add is fused and the elementary functions are series, so the bits depend neither on
// the target nor on a libm.

constexpr int kPairs = 64;  // pairs of normals per iteration
constexpr double kLn2 = 0.6931471805599453094;
constexpr double kHalfPi = 1.5707963267948966192;
constexpr double kSqrtHalf = 0.7071067811865475244;

// ln x for x in (0, 1], by 2 atanh(s), s = (m - 1) / (m + 1), |s| < 0.172, after x = m 2^e with m near 1.
inline double natural_log(double x) {
    const auto bits = __builtin_bit_cast(std::uint64_t, x);
    // an integer below 2^52 in the low bits of 2^52 + integer
    double exponent = __builtin_bit_cast(double, bits >> 52 | 0x4330000000000000ULL) - (0x1p52 + 1022.0);
    double mantissa =
        __builtin_bit_cast(double, (bits & 0x000FFFFFFFFFFFFFULL) | 0x3FE0000000000000ULL);  // [1/2, 1)
    const bool low = mantissa < kSqrtHalf;
    mantissa = low ? mantissa + mantissa : mantissa;
    exponent = low ? exponent - 1.0 : exponent;
    const double s = (mantissa - 1.0) / (mantissa + 1.0);
    const double q = s * s;
    double series = 1.0 / 23.0;
    for (int odd = 21; odd >= 1; odd -= 2) series = series * q + 1.0 / odd;
    return exponent * kLn2 + 2.0 * s * series;
}

// Taylor series of sin and cos for |angle| <= pi / 4: the first term left out is below 1e-18.
inline double sine(double angle) {
    const double q = angle * angle;
    double series = 1.0;
    for (int n = 17; n >= 3; n -= 2) series = 1.0 - series * (q * (1.0 / (n * (n - 1))));
    return angle * series;
}
inline double cosine(double angle) {
    const double q = angle * angle;
    double series = 1.0;
    for (int n = 18; n >= 2; n -= 2) series = 1.0 - series * (q * (1.0 / (n * (n - 1))));
    return series;
}

// The upper 52 bits of two words as a double in [0, 1).
inline double unit_of_two(std::uint32_t high, std::uint32_t low) {
    const std::uint64_t bits = (std::uint64_t{high} << 32 | low) >> 12;
    return __builtin_bit_cast(double, bits | 0x3FF0000000000000ULL) - 1.0;
}

void normals(const std::uint32_t key[2], std::uint64_t generation, std::uint32_t row, std::int64_t count,
             double* out) {
    alignas(64) std::uint32_t words[4][kPairs];
    double first[kPairs], second[kPairs];
    for (std::int64_t pair = 0; 2 * pair < count; pair += kPairs) {
        for (int i = 0; i < kPairs; i += kLanes) {
            VecU counter[4] = {counting(static_cast<std::uint32_t>(pair + i)), splat_bits(row),
                               splat_bits(static_cast<std::uint32_t>(generation)),
                               splat_bits(static_cast<std::uint32_t>(generation >> 32))};
            philox(counter, key[0], key[1]);
            for (int word = 0; word < 4; ++word)
                __builtin_memcpy(&words[word][i], &counter[word], sizeof(VecU));
        }
        for (int i = 0; i < kPairs; ++i) {
            // the logarithm's argument is in (0, 1)
            const double radius_uniform = unit_of_two(words[0][i], words[1][i]) + 0x1p-53;
            const double radius = __builtin_sqrt(-2.0 * natural_log(radius_uniform));
            // 2 pi turn = quarter * pi / 2 + angle with |angle| <= pi / 4
            const double quarters = 4.0 * unit_of_two(words[2][i], words[3][i]);
            const double quarter = static_cast<double>(static_cast<std::int32_t>(quarters + 0.5));
            const double angle = (quarters - quarter) * kHalfPi;
            const double s = sine(angle);
            const double c = cosine(angle);
            const bool odd = quarter == 1.0 || quarter == 3.0;
            const bool left = quarter == 1.0 || quarter == 2.0;   // cos < 0 side
            const bool below = quarter == 2.0 || quarter == 3.0;  // sin < 0 side
            const double cos_turn = odd ? s : c;
            const double sin_turn = odd ? c : s;
            first[i] = radius * (left ? -cos_turn : cos_turn);
            second[i] = radius * (below ? -sin_turn : sin_turn);
        }
        for (int i = 0; i < kPairs; ++i) {
            const std::int64_t at = 2 * (pair + i);
            if (at < count) out[at] = first[i];
            if (at + 1 < count) out[at + 1] = second[i];
        }
    }
}
