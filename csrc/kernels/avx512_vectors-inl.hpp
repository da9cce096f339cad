// Vector types and primitives of 16 lanes, for the files built with AVX-512.

constexpr int kLanes = 16;
constexpr int kRows = 12, kRowsAlone = 12;  // rows at once, for two vectors of lanes and for one
constexpr int kMatmulRows = 12;             // of a tile of two vectors
constexpr int kNarrowLanes = 4, kNarrowSums = 8;
using VecF = float __attribute__((vector_size(64), may_alias));
using VecI = std::int32_t __attribute__((vector_size(64), may_alias));
using VecU = std::uint32_t __attribute__((vector_size(64), may_alias));

inline VecF fma(VecF a, VecF b, VecF c) {
    return _mm512_fmadd_ps(a, b, c);
}
inline VecF sqrt(VecF x) {
    return _mm512_sqrt_ps(x);
}
inline VecU high_product(VecU a, std::uint32_t b) {
    const __m512i x = reinterpret_cast<__m512i>(a), y = _mm512_set1_epi32(static_cast<int>(b));
    const __m512i even = _mm512_srli_epi64(_mm512_mul_epu32(x, y), 32);
    return reinterpret_cast<VecU>(
        _mm512_mask_mov_epi32(even, 0xAAAA, _mm512_mul_epu32(_mm512_srli_epi64(x, 32), y)));
}
// The offset at which a table is loaded to look up its entries from `first` on, and the lookup itself.
inline int lookup_offset(int) {
    return 0;
}
inline VecF lookup(const float* table, VecI index) {
    return _mm512_permutexvar_ps(reinterpret_cast<__m512i>(index), _mm512_load_ps(table));
}
