// The benchmark of a processor's peak: independent multiply-adds in registers.

template <class P>
inline double multiply_adds(int rounds) {
    constexpr int kSums = 12;  // enough to fill two pipes of latency 4
    VecF sums[kSums];
#pragma GCC unroll 16
    for (int i = 0; i < kSums; ++i)
        sums[i] = splat(static_cast<float>(i));  // all different, so that none is optimized away
    VecF x = P::one();
    for (int round = 0; round < rounds; ++round) {
        __asm__ volatile("" : "+m"(x));  // not a constant, so that nothing is optimized away
        const VecF w = x;
#pragma GCC unroll 16
        for (int i = 0; i < kSums; ++i) sums[i] = P::multiply_add(w, w, sums[i]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kSums; ++i) x += sums[i];
    __asm__ volatile("" : : "m"(x));
    return 2.0 * kSums * kLanes * P::kPack * rounds;
}
