// Standard normals from Philox by Box-Muller, in blocks that the compiler turns into vector code.
#include "core/cmaes_normals.hpp"

#include <bit>
#include <cmath>
#include <cstdint>

#include "core/rng.hpp"

namespace worldmodels {
namespace {

constexpr int kBlock = 32;           // pairs of normals made at a time
constexpr double kUnit = 0x1.0p-52;  // spacing of the uniforms
constexpr double kLn2 = 0.6931471805599453094;
constexpr double kHalfPi = 1.5707963267948966192;
constexpr double kSqrtHalf = 0.7071067811865475244;

// ln x for x in (0, 1], by 2 atanh(s), s = (m - 1) / (m + 1), |s| < 0.172, after x = m 2^e with m near 1.
inline double natural_log(double x) {
    const auto bits = std::bit_cast<std::uint64_t>(x);
    double exponent = static_cast<double>(static_cast<std::int32_t>(bits >> 52) - 1022);
    double mantissa =
        std::bit_cast<double>((bits & 0x000FFFFFFFFFFFFFULL) | 0x3FE0000000000000ULL);  // [1/2, 1)
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
    for (int n = 17; n >= 3; n -= 2) series = 1.0 - series * q / (n * (n - 1));
    return angle * series;
}
inline double cosine(double angle) {
    const double q = angle * angle;
    double series = 1.0;
    for (int n = 18; n >= 2; n -= 2) series = 1.0 - series * q / (n * (n - 1));
    return series;
}

}  // namespace

void fill_normals(std::uint64_t seed, std::uint64_t generation, std::uint32_t row, std::int64_t count,
                  double* out) {
    double radius_uniform[kBlock];
    double turn[kBlock];
    double first[kBlock];
    double second[kBlock];
    const std::int64_t pairs = (count + 1) / 2;
    for (std::int64_t start = 0; start < pairs; start += kBlock) {
        for (int i = 0; i < kBlock; ++i) {
            const auto bits = philox4x32(
                {static_cast<std::uint32_t>(start + i), row, static_cast<std::uint32_t>(generation),
                 static_cast<std::uint32_t>(generation >> 32)},
                philox_key(seed));
            const std::uint64_t a = (std::uint64_t{bits[0]} << 32 | bits[1]) >> 12;
            const std::uint64_t b = (std::uint64_t{bits[2]} << 32 | bits[3]) >> 12;
            radius_uniform[i] =
                (static_cast<double>(static_cast<std::int64_t>(a)) + 0.5) * kUnit;  // in (0, 1)
            turn[i] = static_cast<double>(static_cast<std::int64_t>(b)) * kUnit;    // in [0, 1)
        }
#pragma omp simd
        for (int i = 0; i < kBlock; ++i) {
            const double radius = std::sqrt(-2.0 * natural_log(radius_uniform[i]));
            // 2 pi turn = quarter * pi / 2 + angle with |angle| <= pi / 4
            const double quarters = 4.0 * turn[i];
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
        for (int i = 0; i < kBlock; ++i) {
            const std::int64_t at = 2 * (start + i);
            if (at < count) out[at] = first[i];
            if (at + 1 < count) out[at + 1] = second[i];
        }
    }
}

}  // namespace worldmodels
