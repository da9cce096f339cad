// CMA-ES without Python: normals and products against long double and plain loops, the same bits for any
// number of threads, and runs that find a minimum with a Jacobi eigensolver in place of LAPACK.
#include <algorithm>
#include <numeric>

#include "check.hpp"
#include "core/cmaes.hpp"
#include "core/cmaes_kernels.hpp"

namespace {

using namespace worldmodels;
using namespace worldmodels::test;

constexpr double kEps64 = 0x1p-52;

std::size_t size(std::int64_t n) {
    return static_cast<std::size_t>(n);
}

void test_normals(const Kernels& kernels) {
    constexpr std::uint64_t kSeed = 0x9876543210ABCDEFU, kGeneration = (std::uint64_t{5} << 32) + 17;
    constexpr std::uint32_t kRow = 3;
    constexpr long double kTau = 6.283185307179586476925L;
    std::vector<double> whole(1001);
    kernels.normals(philox_key(kSeed).data(), kGeneration, kRow, 1001, whole.data());
    for (std::uint32_t i = 0; i < 1001; ++i) {
        const auto bits = philox4x32({i / 2, kRow, static_cast<std::uint32_t>(kGeneration),
                                      static_cast<std::uint32_t>(kGeneration >> 32)},
                                     philox_key(kSeed));
        const auto unit = [&](std::size_t word) {
            return static_cast<long double>((std::uint64_t{bits[word]} << 32 | bits[word + 1]) >> 12);
        };
        const long double radius = std::sqrt(-2.0L * std::log((unit(0) + 0.5L) * 0x1p-52L));
        const long double turn = kTau * unit(2) * 0x1p-52L;
        const double want = static_cast<double>(radius * (i % 2 == 0 ? std::cos(turn) : std::sin(turn)));
        check(std::fabs(whole[i] - want) <= 8.0 * kEps64 * static_cast<double>(radius), "normals",
              kernels.name, i);
    }
    for (const std::int64_t count : {1, 2, 63, 64, 65, 128}) {
        std::vector<double> part(size(count) + 1, 7.0);
        kernels.normals(philox_key(kSeed).data(), kGeneration, kRow, count, part.data());
        check(std::equal(part.begin(), part.end() - 1, whole.begin()) && part.back() == 7.0,
              "the number of normals does not matter", kernels.name, count);
    }
}

void test_products(const Kernels& kernels) {
    std::vector<double> workspace;
    for (const std::int64_t rows : {1, 7, 8, 9, 33})
        for (const std::int64_t depth : {1, 8, 31})
            for (const std::int64_t columns : {1, 7, 8, 40}) {
                Numbers numbers(static_cast<std::uint64_t>(rows * 10'000 + depth * 100 + columns));
                const auto a = numbers.doubles(size(rows * depth)),
                           b = numbers.doubles(size(depth * columns));
                std::vector<double> first;
                for (const int threads : {1, 2, 3}) {
                    std::vector<double> out(size(rows * columns));
                    matrix_product(kernels, a.data(), b.data(), out.data(), rows, depth, columns, threads,
                                   workspace);
                    if (first.empty()) first = out;
                    check(same_bits(out, first), "threads do not matter to a product", kernels.name, threads);
                }
                for (std::int64_t i = 0; i < rows; ++i)
                    for (std::int64_t j = 0; j < columns; ++j) {
                        double sum = 0.0, magnitude = 0.0;
                        for (std::int64_t k = 0; k < depth; ++k) {
                            const double product = a[size(i * depth + k)] * b[size(k * columns + j)];
                            sum += product;
                            magnitude += std::fabs(product);
                        }
                        check(std::fabs(first[size(i * columns + j)] - sum) <=
                                  static_cast<double>(depth) * kEps64 * magnitude,
                              "matrix product", kernels.name, depth);
                    }
            }
    for (const std::int64_t n : {1, 8, 9, 41})
        for (const std::int64_t depth : {1, 6, 20}) {
            Numbers numbers(static_cast<std::uint64_t>(n * 100 + depth));
            const auto c = numbers.doubles(size(n * n)), weights = numbers.doubles(size(depth)),
                       v = numbers.doubles(size(depth * n)), x = numbers.doubles(size(depth));
            std::vector<double> first, first_sum;
            for (const int threads : {1, 2, 3}) {
                std::vector<double> out = c, sum(size(n));
                symmetric_update(kernels, out.data(), n, 0.75, weights.data(), v.data(), depth, threads,
                                 workspace);
                weighted_rows(x.data(), v.data(), sum.data(), depth, n, threads);
                if (first.empty()) first = out, first_sum = sum;
                check(same_bits(out, first) && same_bits(sum, first_sum),
                      "threads do not matter to an update", kernels.name, threads);
            }
            for (std::int64_t i = 0; i < n; ++i) {
                double row_sum = 0.0;
                for (std::int64_t k = 0; k < depth; ++k) row_sum += x[size(k)] * v[size(k * n + i)];
                check(std::fabs(first_sum[size(i)] - row_sum) <= 4.0 * static_cast<double>(depth) * kEps64,
                      "weighted rows", kernels.name, n);
                for (std::int64_t j = 0; j < n; ++j) {
                    double want = c[size(i * n + j)];
                    if (j <= i) {
                        want *= 0.75;
                        for (std::int64_t k = 0; k < depth; ++k)
                            want += weights[size(k)] * v[size(k * n + i)] * v[size(k * n + j)];
                    }
                    const double error = j <= i ? 4.0 * static_cast<double>(depth) * kEps64 : 0.0;
                    check(std::fabs(first[size(i * n + j)] - want) <= error, "symmetric update", kernels.name,
                          n);
                }
            }
        }
}

// Cyclic Jacobi rotations with the interface of LAPACK's dsyevd: eigenvectors in the rows of a, values
// ascend.
void jacobi(char*, char*, int* order, double* a, int*, double* values, double* work, int* work_size,
            int* integer_work, int* integer_size, int* info) {
    *info = 0;
    if (*work_size < 0 || *integer_size < 0) {
        *work = *integer_work = 1;
        return;
    }
    const std::size_t n = static_cast<std::size_t>(*order);
    std::vector<double> m(n * n), vectors(n * n, 0.0);
    for (std::size_t i = 0; i < n; ++i) {
        for (std::size_t j = 0; j < n; ++j) m[i * n + j] = i >= j ? a[i * n + j] : a[j * n + i];
        vectors[i * n + i] = 1.0;
    }
    for (int sweep = 0; sweep < 12; ++sweep)
        for (std::size_t p = 0; p < n; ++p)
            for (std::size_t q = p + 1; q < n; ++q) {
                if (m[p * n + q] == 0.0) continue;
                const double theta = (m[q * n + q] - m[p * n + p]) / (2.0 * m[p * n + q]);
                const double t = std::copysign(1.0, theta) / (std::fabs(theta) + std::hypot(theta, 1.0));
                const double c = 1.0 / std::hypot(t, 1.0), s = t * c;
                const auto rotate = [c, s](double& x, double& y) {
                    const double old = x;
                    x = c * old - s * y;
                    y = s * old + c * y;
                };
                for (std::size_t k = 0; k < n; ++k) rotate(m[k * n + p], m[k * n + q]);
                for (std::size_t k = 0; k < n; ++k) {
                    rotate(m[p * n + k], m[q * n + k]);
                    rotate(vectors[p * n + k], vectors[q * n + k]);
                }
            }
    std::vector<std::size_t> rank(n);
    std::iota(rank.begin(), rank.end(), 0U);
    std::sort(rank.begin(), rank.end(), [&](auto x, auto y) { return m[x * n + x] < m[y * n + y]; });
    for (std::size_t i = 0; i < n; ++i) {
        values[i] = m[rank[i] * n + rank[i]];
        std::copy_n(vectors.data() + rank[i] * n, n, a + i * n);
    }
}

double ellipsoid(const double* x, std::int64_t n) {
    double sum = 0.0;
    for (std::int64_t i = 0; i < n; ++i)
        sum += std::pow(1e3, static_cast<double>(i) / static_cast<double>(n - 1)) * x[i] * x[i];
    return sum;
}

struct Run {
    std::vector<double> mean;
    double best;
};

Run minimize(const Kernels& kernels, std::int64_t n, std::int64_t popsize, bool separable, int generations,
             int threads) {
    Cmaes cmaes(cmaes_parameters(n, popsize, true, separable), std::vector<double>(size(n), 1.0), 0.5, 1,
                separable, jacobi);
    double best = std::numeric_limits<double>::infinity();
    for (int g = 0; g < generations; ++g) {
        std::vector<double> x = cmaes.ask(kernels, threads);
        x[0] += 1e-3;  // an injected solution
        std::vector<double> values(size(popsize));
        for (std::int64_t i = 0; i < popsize; ++i) values[size(i)] = ellipsoid(x.data() + i * n, n);
        std::vector<std::int64_t> order(size(popsize)), rank(size(popsize));
        std::iota(order.begin(), order.end(), 0);
        std::sort(order.begin(), order.end(),
                  [&](auto a, auto b) { return values[size(a)] < values[size(b)]; });
        for (std::int64_t place = 0; place < popsize; ++place) rank[size(order[size(place)])] = place;
        best = std::min(best, values[size(order[0])]);
        cmaes.tell(kernels, x.data(), rank.data(), threads);
    }
    return {cmaes.state().mean, best};
}

}  // namespace

int main() {
    const SimdTargets targets = supported_simd_targets();
    for (std::size_t l = 0; l < targets.count; ++l) {
        const Kernels& kernels = *targets.begin[l];
        test_normals(kernels);
        test_products(kernels);
        check(minimize(kernels, 8, 12, false, 300, 1).best < 1e-9, "a minimum is found", "full", 8);
        check(minimize(kernels, 8, 12, true, 300, 1).best < 1e-9, "a minimum is found", "separable", 8);
        for (const bool separable : {false, true}) {
            const std::int64_t n = separable ? 1200 : 50,
                               popsize = separable ? 200 : 100;  // large enough for threads
            const Run first = minimize(kernels, n, popsize, separable, 4, 1);
            for (const int threads : {2, 3})
                check(same_bits(minimize(kernels, n, popsize, separable, 4, threads).mean, first.mean),
                      "threads do not matter", separable ? "separable" : "full", threads);
        }
    }
    return finish("cmaes");
}
