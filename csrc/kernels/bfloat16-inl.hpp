// bfloat16: pairs in one float, and their products by float32 arithmetic.

inline VecU round_bfloat16(VecF x) {
    return worldmodels::round_bfloat16(as_bits(x));
}

// to (ceil(count / 2)) = pairs of neighbours; the last one's second is 0 where count is odd.
inline void pack_neighbours(std::int64_t count, const float* from, float* to) {
    using Halves = std::uint16_t __attribute__((vector_size(2 * kLanes)));
    std::int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
        const auto halves = __builtin_convertvector(round_bfloat16(load_unaligned(from + i)) >> 16, Halves);
        __builtin_memcpy(to + i / 2, &halves, sizeof halves);
    }
    for (; i < count; i += 2) to[i / 2] = bfloat16_pair(from[i], i + 1 < count ? from[i + 1] : 0.0F);
}

// to (count) = pairs of low and high; high is 0 where it is null.
inline void pack_rows(std::int64_t count, const float* low, const float* high, float* to) {
    using Bits4 = std::uint32_t __attribute__((vector_size(16), may_alias));
    const auto pack = [&]<class Bits>(Bits, std::int64_t i) {
        Bits first, second{};
        __builtin_memcpy(&first, low + i, sizeof first);
        if (high != nullptr) __builtin_memcpy(&second, high + i, sizeof second);
        const Bits pairs = worldmodels::round_bfloat16(first) >> 16 | worldmodels::round_bfloat16(second);
        __builtin_memcpy(to + i, &pairs, sizeof pairs);
    };
    std::int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) pack(VecU{}, i);
    for (; i + 4 <= count; i += 4) pack(Bits4{}, i);
    for (; i < count; ++i) to[i] = bfloat16_pair(low[i], high != nullptr ? high[i] : 0.0F);
}

struct Bfloat16Pairs {
    static constexpr int kPack = 2;
    static void pack_row(int count, const float* x, float* to) { pack_neighbours(count, x, to); }
    static void pack_columns(int count, const float* low, const float* high, float* to) {
        pack_rows(count, low, high, to);
    }
    static VecF broadcast(const float* p) {
        std::int32_t word;
        __builtin_memcpy(&word, p, sizeof word);
        return as_float(splat_int(word));
    }
};

struct EmulatedBfloat16 : Bfloat16Pairs {
    static VecF multiply_add(VecF w, VecF x, VecF sum) {
        const VecF low = fma(low_half(w), low_half(x), sum);
        return fma(high_half(w), high_half(x), low);
    }

  private:
    static VecF low_half(VecF x) { return reinterpret_cast<VecF>(as_bits(x) << 16); }
    static VecF high_half(VecF x) { return reinterpret_cast<VecF>(as_bits(x) & 0xFFFF0000U); }
};
