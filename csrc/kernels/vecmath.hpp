// Elementary functions on vectors of floats. Included inside an ISA's anonymous namespace, after its
// primitives: V, I, U (vectors of float, int32, uint32), kLanes, fma, sqrt, high_product.
//
// Error bounds (tests/test_kernels.py holds them): exp 2 ulp (denormal results: 1 ulp of theirs); log 3 ulp;
// tanh 6 ulp, never beyond +-1; sigmoid 3e-7 absolute; sin_turns, cos_turns 1.5e-7 absolute.

inline V splat(float x) {
    return x - V{};
}
inline I splat_int(std::int32_t x) {
    return x - I{};
}
inline U splat_bits(std::uint32_t x) {
    return x - U{};
}
inline U counting(std::uint32_t first) {
    U x;
    for (int lane = 0; lane < kLanes; ++lane) x[lane] = first + static_cast<std::uint32_t>(lane);
    return x;
}
inline I as_int(V x) {
    return reinterpret_cast<I>(x);
}
inline U as_bits(V x) {
    return reinterpret_cast<U>(x);
}
inline V as_float(I x) {
    return reinterpret_cast<V>(x);
}
inline V to_float(I x) {
    return __builtin_convertvector(x, V);
}

inline V load(const float* p) {
    return *reinterpret_cast<const V*>(p);
}
inline void store(float* p, V x) {
    *reinterpret_cast<V*>(p) = x;
}
inline V load_unaligned(const float* p) {
    V x;
    __builtin_memcpy(&x, p, sizeof x);
    return x;
}
inline void store_unaligned(float* p, V x) {
    __builtin_memcpy(p, &x, sizeof x);
}

inline V minimum(V x, float bound) {
    return x > bound ? splat(bound) : x;
}  // NaN stays
inline V maximum(V x, float bound) {
    return x < bound ? splat(bound) : x;
}

// x = n ln 2 + r; e^r = 1 + r + r^2 P(r) on |r| <= ln 2 / 2; 2^n in two factors, for denormal results.
inline V exp(V x) {
    x = maximum(minimum(x, 89.0F), -104.0F);
    const V magic = splat(12582912.0F);  // 1.5 * 2^23: adding it rounds to an integer
    const V t = fma(x, splat(1.44269504F), magic);
    const V n = t - magic;
    V r = fma(n, splat(-0.693359375F), x);
    r = fma(n, splat(2.12194440e-4F), r);
    V p = splat(0.0013814222F);
    p = fma(p, r, splat(0.008368899F));
    p = fma(p, r, splat(0.041668404F));
    p = fma(p, r, splat(0.1666652F));
    p = fma(p, r, splat(0.49999994F));
    p = fma(p, r * r, r) + 1.0F;
    const I k = as_int(t) - as_int(magic);
    const I half = k >> 1;
    return p * as_float((half + 127) << 23) * as_float((k - half + 127) << 23);
}

// x = 2^e m, m in [sqrt(1/2), sqrt(2)); s = (m - 1) / (m + 1); log m = 2 s + s^3 Q(s^2).
inline V log(V x) {
    const I small = x < 1.17549435e-38F;
    const V scaled = small ? x * 8388608.0F : x;
    const U bits = as_bits(scaled);  // unsigned: the sign bit of a negative x may carry
    const I exponent = reinterpret_cast<I>(bits - 0x3f3504f3U) >> 23;
    const V m = reinterpret_cast<V>(bits - (reinterpret_cast<U>(exponent) << 23));
    const V e = to_float(small ? exponent - 23 : exponent);
    const V s = (m - 1.0F) / (m + 1.0F);
    const V u = s * s;
    V q = splat(0.23581588F);
    q = fma(q, u, splat(0.28537342F));
    q = fma(q, u, splat(0.40000334F));
    q = fma(q, u, splat(0.6666666F));
    V y = fma(s * u, q, e * -2.12194440e-4F);
    y = (y + (s + s)) + e * 0.693359375F;
    y = x < 0.0F ? splat(__builtin_nanf("")) : y;
    y = x == 0.0F ? splat(-__builtin_inff()) : y;
    return ((x == __builtin_inff()) | (x != x)) ? x : y;
}

// tanh x = x P(x^2) / Q(x^2) on |x| <= 9.02, where it rounds to 1.
struct Ratio {
    V over, under;
};
inline Ratio tanh_ratio(V x) {
    x = maximum(minimum(x, 9.02F), -9.02F);
    const V u = x * x;
    V p = splat(1.3319094e-08F);
    p = fma(p, u, splat(2.0583499e-05F));
    p = fma(p, u, splat(0.0034940357F));
    p = fma(p, u, splat(0.13379718F));
    p = fma(p, u, splat(1.0F));
    V q = splat(7.7620285e-07F);
    q = fma(q, u, splat(0.00032830946F));
    q = fma(q, u, splat(0.025871078F));
    q = fma(q, u, splat(0.46713033F));
    q = fma(q, u, splat(1.0F));
    return {x * p, q};
}
inline V tanh(V x) {
    const Ratio t = tanh_ratio(x);
    return maximum(minimum(t.over / t.under, 1.0F), -1.0F);
}
inline V sigmoid(V x) {
    const Ratio t = tanh_ratio(x * 0.5F);
    return maximum(minimum((t.under + t.over) * 0.5F / t.under, 1.0F), 0.0F);
}

// Sine and cosine of 2 pi x: the quadrant q = round(4 x), then polynomials on |x - q / 4| <= 1/8.
inline void sincos_turns(V x, V& sine, V& cosine) {
    const V magic = splat(12582912.0F);
    const V t = fma(x, splat(4.0F), magic);
    const V r = fma(t - magic, splat(-0.25F), x);
    const U quadrant = as_bits(t) - as_bits(magic);
    const V u = r * r;
    V s = splat(41.468956F);
    s = fma(s, u, splat(-76.69775F));
    s = fma(s, u, splat(81.6052F));
    s = fma(s, u, splat(-41.3417F));
    s = fma(s, u, splat(6.2831855F)) * r;
    V c = splat(59.2276F);
    c = fma(c, u, splat(-85.44319F));
    c = fma(c, u, splat(64.93932F));
    c = fma(c, u, splat(-19.739208F));
    c = fma(c, u, splat(1.0F));
    const I swap = (quadrant & 1U) != 0U;
    const V a = swap ? c : s;
    const V b = swap ? s : c;
    sine = (quadrant & 2U) != 0U ? -a : a;
    cosine = ((quadrant + 1U) & 2U) != 0U ? -b : b;
}

// Philox4x32-10 (Salmon et al. 2011) on a vector of counters; the key is one for all lanes or a vector.
template <class Key>
inline void philox(U counter[4], Key key0, Key key1) {
    for (int round = 0; round < 10; ++round) {
        const U low0 = counter[0] * 0xD2511F53U, high0 = high_product(counter[0], 0xD2511F53U);
        const U low1 = counter[2] * 0xCD9E8D57U, high1 = high_product(counter[2], 0xCD9E8D57U);
        counter[0] = high1 ^ counter[1] ^ key0;
        counter[1] = low1;
        counter[2] = high0 ^ counter[3] ^ key1;
        counter[3] = low0;
        key0 += 0x9E3779B9U;
        key1 += 0xBB67AE85U;
    }
}

// 24 bits of a word as a float: unit in [0, 1).
inline V unit(U word) {
    return to_float(reinterpret_cast<I>(word >> 8)) * 5.9604645e-08F;
}

// What two latent dimensions need for one step: two normals (Box-Muller on words 0 and 1) and two uniforms in
// [0, 1).
struct Draws {
    V normal[2], uniform[2];
};
template <class Key>
inline Draws draw(U block, U step, U episode, U candidate, Key key0, Key key1) {
    U words[4] = {block, step, episode, candidate};
    philox(words, key0, key1);
    const V radius =
        sqrt(log(unit(words[0]) + 5.9604645e-08F) * -2.0F);  // the logarithm's argument is in (0, 1]
    V sine, cosine;
    sincos_turns(unit(words[1]), sine, cosine);
    return {{radius * cosine, radius * sine}, {unit(words[2]), unit(words[3])}};
}
