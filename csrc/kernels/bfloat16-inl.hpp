// bfloat16: rounding, pairs in one float, and their products by float32 arithmetic.

// The nearest bfloat16, ties to even; the result is in the upper half.
inline std::uint32_t round_bfloat16(float x) {
    std::uint32_t bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    return (bits + 0x7FFFU + ((bits >> 16) & 1U)) & 0xFFFF0000U;
}

inline VecU round_bfloat16(VecF x) {
    const VecU bits = as_bits(x);
    return (bits + 0x7FFFU + ((bits >> 16) & 1U)) & 0xFFFF0000U;
}

// A pair of bfloat16 in one float, the earlier one in the low half.
inline float bfloat16_pair(float low, float high) {
    const std::uint32_t word = round_bfloat16(low) >> 16 | round_bfloat16(high);
    float pair;
    __builtin_memcpy(&pair, &word, sizeof pair);
    return pair;
}

struct Bfloat16Pairs {
    static constexpr int kPack = 2;
    static float word(const float* x, int k, int depth) {
        return bfloat16_pair(x[k], k + 1 < depth ? x[k + 1] : 0.0F);
    }
    static float column_word(const float* const* x, int column, int k, int depth) {
        return bfloat16_pair(x[k][column], k + 1 < depth ? x[k + 1][column] : 0.0F);
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
