// Elementary functions on vectors of floats.
//
// Needs an ISA's primitives: VecF, VecI and VecU (float, int32, uint32), kLanes, fma, sqrt, high_product.
//
// Error bounds (tested in tests/dream/test_kernels.py): exp 2 ulp, 1.5 ulp for denormal results; log 3 ulp;
// tanh 6 ulp and never beyond +-1; sin_turns and cos_turns 1.5e-7 absolute.

inline VecF splat(float x) {
    return x - VecF{};
}
inline VecI splat_int(std::int32_t x) {
    return x - VecI{};
}
inline VecU splat_bits(std::uint32_t x) {
    return x - VecU{};
}
inline VecU counting(std::uint32_t first) {
    VecU x;
    for (int lane = 0; lane < kLanes; ++lane) x[lane] = first + static_cast<std::uint32_t>(lane);
    return x;
}
inline VecI as_int(VecF x) {
    return reinterpret_cast<VecI>(x);
}
inline VecU as_bits(VecF x) {
    return reinterpret_cast<VecU>(x);
}
inline VecF as_float(VecI x) {
    return reinterpret_cast<VecF>(x);
}
inline VecF to_float(VecI x) {
    return __builtin_convertvector(x, VecF);
}

inline VecF load(const float* p) {
    return *reinterpret_cast<const VecF*>(p);
}
inline void store(float* p, VecF x) {
    *reinterpret_cast<VecF*>(p) = x;
}
inline VecF load_unaligned(const float* p) {
    VecF x;
    __builtin_memcpy(&x, p, sizeof x);
    return x;
}
inline void store_unaligned(float* p, VecF x) {
    __builtin_memcpy(p, &x, sizeof x);
}
// NaN stays NaN.
inline VecF minimum(VecF x, float bound) {
    return x > bound ? splat(bound) : x;
}
inline VecF maximum(VecF x, float bound) {
    return x < bound ? splat(bound) : x;
}

// x = n ln 2 + r; e^r = 1 + r + r^2 P(r) on |r| <= ln 2 / 2; 2^n in two factors, for denormal results.
inline VecF exp(VecF x) {
    x = maximum(minimum(x, 89.0F), -104.0F);
    const VecF magic = splat(12582912.0F);  // 1.5 * 2^23: adding it rounds to an integer
    const VecF t = fma(x, splat(1.44269504F), magic);
    const VecF n = t - magic;
    VecF r = fma(n, splat(-0.693359375F), x);
    r = fma(n, splat(2.12194440e-4F), r);
    VecF p = splat(0.0013814222F);
    p = fma(p, r, splat(0.008368899F));
    p = fma(p, r, splat(0.041668404F));
    p = fma(p, r, splat(0.1666652F));
    p = fma(p, r, splat(0.49999994F));
    p = fma(p, r * r, r) + 1.0F;
    const VecI k = as_int(t) - as_int(magic);
    const VecI half = k >> 1;
    return p * as_float((half + 127) << 23) * as_float((k - half + 127) << 23);
}

// x = 2^e m, m in [sqrt(1/2), sqrt(2)); s = (m - 1) / (m + 1); log m = 2 s + s^3 Q(s^2).
inline VecF log(VecF x) {
    const VecI small = x < 1.17549435e-38F;
    const VecF scaled = small ? x * 8388608.0F : x;
    const VecU bits = as_bits(scaled);  // unsigned: the sign bit of a negative x may carry
    const VecI exponent = reinterpret_cast<VecI>(bits - 0x3f3504f3U) >> 23;
    const VecF m = reinterpret_cast<VecF>(bits - (reinterpret_cast<VecU>(exponent) << 23));
    const VecF e = to_float(small ? exponent - 23 : exponent);
    const VecF s = (m - 1.0F) / (m + 1.0F);
    const VecF u = s * s;
    VecF q = splat(0.23581588F);
    q = fma(q, u, splat(0.28537342F));
    q = fma(q, u, splat(0.40000334F));
    q = fma(q, u, splat(0.6666666F));
    VecF y = fma(s * u, q, e * -2.12194440e-4F);
    y = (y + (s + s)) + e * 0.693359375F;
    y = x < 0.0F ? splat(__builtin_nanf("")) : y;
    y = x == 0.0F ? splat(-__builtin_inff()) : y;
    return ((x == __builtin_inff()) | (x != x)) ? x : y;
}

// tanh x = x P(x^2) / Q(x^2) on |x| <= 9.02, where it rounds to 1.
struct Ratio {
    VecF over, under;
};
inline Ratio tanh_ratio(VecF x) {
    x = maximum(minimum(x, 9.02F), -9.02F);
    const VecF u = x * x;
    VecF p = splat(1.3319094e-08F);
    p = fma(p, u, splat(2.0583499e-05F));
    p = fma(p, u, splat(0.0034940357F));
    p = fma(p, u, splat(0.13379718F));
    p = fma(p, u, splat(1.0F));
    VecF q = splat(7.7620285e-07F);
    q = fma(q, u, splat(0.00032830946F));
    q = fma(q, u, splat(0.025871078F));
    q = fma(q, u, splat(0.46713033F));
    q = fma(q, u, splat(1.0F));
    return {x * p, q};
}
inline VecF tanh(VecF x) {
    const Ratio t = tanh_ratio(x);
    return maximum(minimum(t.over / t.under, 1.0F), -1.0F);
}

// Sine and cosine of 2 pi x: the quadrant q = round(4 x), then polynomials on |x - q / 4| <= 1/8.
inline void sincos_turns(VecF x, VecF& sine, VecF& cosine) {
    const VecF magic = splat(12582912.0F);
    const VecF t = fma(x, splat(4.0F), magic);
    const VecF r = fma(t - magic, splat(-0.25F), x);
    const VecU quadrant = as_bits(t) - as_bits(magic);
    const VecF u = r * r;
    VecF s = splat(41.468956F);
    s = fma(s, u, splat(-76.69775F));
    s = fma(s, u, splat(81.6052F));
    s = fma(s, u, splat(-41.3417F));
    s = fma(s, u, splat(6.2831855F)) * r;
    VecF c = splat(59.2276F);
    c = fma(c, u, splat(-85.44319F));
    c = fma(c, u, splat(64.93932F));
    c = fma(c, u, splat(-19.739208F));
    c = fma(c, u, splat(1.0F));
    const VecI swap = (quadrant & 1U) != 0U;
    const VecF a = swap ? c : s;
    const VecF b = swap ? s : c;
    sine = (quadrant & 2U) != 0U ? -a : a;
    cosine = ((quadrant + 1U) & 2U) != 0U ? -b : b;
}
