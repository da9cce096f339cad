// bfloat16: pairs in one float, and their products by float32 arithmetic.

inline VecU round_bfloat16(VecF x) {
    return worldmodels::round_bfloat16(as_bits(x));
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
