// The primitives of 16 lanes, for the files built with AVX-512. Included inside an ISA's anonymous namespace.

constexpr int kLanes = 16;
constexpr int kRows = 12, kRowsAlone = 12;  // rows at once, for two vectors of lanes and for one
constexpr int kFewLanes = 4, kFewSums = 8;
using V = float __attribute__((vector_size(64), may_alias));
using Q = float __attribute__((vector_size(16), may_alias));
using I = std::int32_t __attribute__((vector_size(64), may_alias));
using U = std::uint32_t __attribute__((vector_size(64), may_alias));

inline V fma(V a, V b, V c) {
    return _mm512_fmadd_ps(a, b, c);
}
inline Q fma(Q a, Q b, Q c) {
    return _mm_fmadd_ps(a, b, c);
}
inline V sqrt(V x) {
    return _mm512_sqrt_ps(x);
}
inline U high_product(U a, std::uint32_t b) {
    const __m512i x = reinterpret_cast<__m512i>(a), y = _mm512_set1_epi32(static_cast<int>(b));
    const __m512i even = _mm512_srli_epi64(_mm512_mul_epu32(x, y), 32);
    return reinterpret_cast<U>(
        _mm512_mask_mov_epi32(even, 0xAAAA, _mm512_mul_epu32(_mm512_srli_epi64(x, 32), y)));
}
// Where a table's entries from `first` on are loaded from, and the entries a lane's index names.
inline int lookup_offset(int) {
    return 0;
}
inline V lookup(const float* table, I index) {
    return _mm512_permutexvar_ps(reinterpret_cast<__m512i>(index), _mm512_load_ps(table));
}
