// One generation of CMA-ES; the numbers at the update lines are the equations of arXiv 1604.00772.
#include "core/cmaes.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/cmaes_kernels.hpp"
#include "core/parallel.hpp"
#include "core/rng.hpp"

namespace worldmodels {
namespace {

// Below this many multiplications a parallel region costs more than it saves.
constexpr std::int64_t kParallelWork = 200'000;

// Largest coordinate of an injected step in sigmas: squares stay finite.
constexpr double kMaxStep = 1e100;

// Least variance along an axis: D stays positive. An axis below kMinDeviation is degenerate.
constexpr double kMinVariance = 1e-290, kMinDeviation = 1e-140;

// Eight partial sums, so that additions do not wait for each other.
double dot(const double* a, const double* b, std::int64_t n) {
    double sum[8] = {};
    std::int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (int lane = 0; lane < 8; ++lane) sum[lane] += a[i + lane] * b[i + lane];
    for (; i < n; ++i) sum[0] += a[i] * b[i];
    return ((sum[0] + sum[4]) + (sum[1] + sum[5])) + ((sum[2] + sum[6]) + (sum[3] + sum[7]));
}

double norm(const double* v, std::int64_t n) {
    return std::sqrt(dot(v, v, n));
}

std::size_t size(std::int64_t n) {
    return static_cast<std::size_t>(n);
}

}  // namespace

Cmaes::Cmaes(CmaesParameters parameters, const std::vector<double>& mean, double sigma, std::uint64_t seed,
             bool separable, Dsyevd dsyevd)
    : parameters_(std::move(parameters)), seed_(seed), separable_(separable), eigen_(dsyevd) {
    const std::int64_t n = parameters_.n;
    state_.mean = mean;
    state_.ps.assign(size(n), 0.0);
    state_.pc.assign(size(n), 0.0);
    state_.D.assign(size(n), 1.0);
    if (separable_) {
        state_.covariance.assign(size(n), 1.0);
    } else {
        state_.covariance.assign(size(n * n), 0.0);
        for (std::int64_t i = 0; i < n; ++i) state_.covariance[size(i * n + i)] = 1.0;
        state_.B = state_.covariance;
        next_B_.resize(size(n * n));
    }
    const std::int64_t all = parameters_.popsize * n;
    state_.z.assign(size(all), 0.0);
    state_.y.assign(size(all + n), 0.0);  // one more row: pc joins the rank-mu update
    state_.x.assign(size(all), 0.0);
    state_.sigma = sigma;
    state_.generation = 0;
    state_.decomposed_at = 0;
    state_.asked = false;
}

void Cmaes::decompose() {
    const std::int64_t n = parameters_.n;
    if (separable_) {
        for (std::int64_t i = 0; i < n; ++i) state_.D[size(i)] = std::sqrt(state_.covariance[size(i)]);
    } else {
        std::vector<double> values(size(n));
        next_B_ = state_.covariance;
        eigen_.decompose(n, next_B_.data(), values.data());
        // Rounding can leave the smallest eigenvalue of an ill-conditioned C at or below zero: shift all of
        // them.
        const double floor = std::max(values.back() * 1e-15, kMinVariance);
        if (values.front() < floor) {
            const double lift = floor - values.front();
            for (std::int64_t i = 0; i < n; ++i) {
                state_.covariance[size(i * n + i)] += lift;
                values[size(i)] += lift;
            }
        }
        for (std::int64_t k = 0; k < n; ++k) state_.D[size(k)] = std::sqrt(values[size(k)]);
        std::swap(state_.B, next_B_);
    }
    state_.decomposed_at = state_.generation;
}

const std::vector<double>& Cmaes::ask(const Kernels& kernels, int threads) {
    if (state_.asked) return state_.x;
    const std::int64_t n = parameters_.n;
    const std::int64_t rows = parameters_.popsize;
    if (rows * n * (separable_ ? 30 : n) < kParallelWork) threads = 1;
    check_not_forked(threads);
    const auto age = static_cast<double>(state_.generation - state_.decomposed_at);
    if (age > 0.0 && (separable_ || age > parameters_.gap)) decompose();

    const auto key = philox_key(seed_);
    Dz_.resize(separable_ ? 0 : size(rows * n));
    double* Dz = separable_ ? state_.y.data() : Dz_.data();  // with a diagonal C, B = I and y = D z
#pragma omp parallel for num_threads(threads) schedule(static)
    for (std::int64_t i = 0; i < rows; ++i) {
        double* z = state_.z.data() + i * n;
        kernels.normals(key.data(), static_cast<std::uint64_t>(state_.generation),
                        static_cast<std::uint32_t>(i), n,
                        z);  // (38)
        for (std::int64_t k = 0; k < n; ++k) Dz[i * n + k] = state_.D[size(k)] * z[k];
    }
    if (!separable_) {
        matrix_product(kernels, Dz, state_.B.data(), state_.y.data(), rows, n, n, threads,
                       workspace_);  // (39) y = B D z
    }
    for (std::int64_t i = 0; i < rows; ++i) {
        for (std::int64_t j = 0; j < n; ++j) {
            const std::int64_t at = i * n + j;
            state_.x[size(at)] = state_.mean[size(j)] + state_.sigma * state_.y[size(at)];  // (40)
        }
    }
    state_.asked = true;
    return state_.x;
}

// Hansen 2011, "Injecting external solutions into CMA-ES": rows that differ from x get y and z of their own,
// and steps longer than sqrt(n) + 6 are shortened. This limit is eight standard deviations beyond the mean
// length of a sample, so solutions that a caller only rounded keep their length. Along a degenerate axis the
// length is that in sigmas.
void Cmaes::inject(const double* solutions, int threads) {
    const std::int64_t n = parameters_.n;
    const double longest = std::sqrt(static_cast<double>(n)) + 6.0;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (std::int64_t i = 0; i < parameters_.popsize; ++i) {
        const double* x = solutions + i * n;
        if (std::equal(x, x + n, state_.x.data() + i * n)) continue;
        double* y = state_.y.data() + i * n;
        double* z = state_.z.data() + i * n;
        // quarters do not overflow; a step beyond kMaxStep keeps its direction
        double largest = 0.0;
        for (std::int64_t j = 0; j < n; ++j) {
            y[j] = 0.25 * x[j] - 0.25 * state_.mean[size(j)];
            largest = std::max(largest, std::abs(y[j]));
        }
        const double unit = std::max(0.25 * state_.sigma, largest / kMaxStep);
        for (std::int64_t j = 0; j < n; ++j) y[j] /= unit;
        for (std::int64_t k = 0; k < n; ++k) {
            const double along = separable_ ? y[k] : dot(state_.B.data() + k * n, y, n);
            const double deviation = state_.D[size(k)];
            z[k] = deviation < kMinDeviation ? along : along / deviation;
        }
        const double shrink = longest / norm(z, n);
        if (shrink < 1.0) {
            for (std::int64_t j = 0; j < n; ++j) {
                y[j] *= shrink;
                z[j] *= shrink;
            }
        }
    }
}

void Cmaes::tell(const Kernels& kernels, const double* solutions, const std::int64_t* rank, int threads) {
    const CmaesParameters& p = parameters_;
    const std::int64_t n = p.n;
    const std::int64_t rows = p.popsize;
    CmaesState& s = state_;
    if (rows * n * (separable_ ? 1 : n) < kParallelWork) threads = 1;
    check_not_forked(threads);
    std::vector<double> weights(size(rows + 1));
    std::vector<double> y_mean(size(n), 0.0);
    std::vector<double> z_mean(size(n), 0.0);
    std::vector<double> white(size(n));
    if (!separable_) reserve_symmetric_update(n, rows + 1, workspace_);
    inject(solutions, threads);  // nothing is allocated from here on
    for (std::int64_t i = 0; i < rows; ++i) {
        const double w = p.weights[size(rank[i])];
        weights[size(i)] = w;
        if (w <= 0.0) continue;
        for (std::int64_t j = 0; j < n; ++j) {
            y_mean[size(j)] += w * s.y[size(i * n + j)];  // (41)
            z_mean[size(j)] += w * s.z[size(i * n + j)];
        }
    }
    for (std::int64_t j = 0; j < n; ++j) s.mean[size(j)] += s.sigma * y_mean[size(j)];  // (42), cm = 1

    // (43) with C^-1/2 y_mean = B D^-1 B^T y_mean = B z_mean
    if (separable_)
        white = z_mean;
    else
        weighted_rows(z_mean.data(), s.B.data(), white.data(), n, n, threads);
    const double ps_rate = std::sqrt(p.cs * (2.0 - p.cs) * p.mueff);
    for (std::int64_t j = 0; j < n; ++j)
        s.ps[size(j)] = (1.0 - p.cs) * s.ps[size(j)] + ps_rate * white[size(j)];
    const double ps_length = norm(s.ps.data(), n);
    // (44), limited to a factor e per generation
    s.sigma *= std::exp(std::min(p.cs / p.damps * (ps_length / p.chi_n - 1.0), 1.0));
    s.sigma = std::clamp(s.sigma, 1e-290, 1e290);

    // h_sigma = 0 (below equation 45): ps is so long that the update of pc is stalled
    const double settled = 1.0 - std::pow(1.0 - p.cs, 2.0 * static_cast<double>(s.generation + 1));
    const bool stalled =
        ps_length / std::sqrt(settled) >= (1.4 + 2.0 / (static_cast<double>(n) + 1.0)) * p.chi_n;
    const double pc_rate = stalled ? 0.0 : std::sqrt(p.cc * (2.0 - p.cc) * p.mueff);
    for (std::int64_t j = 0; j < n; ++j)
        s.pc[size(j)] = (1.0 - p.cc) * s.pc[size(j)] + pc_rate * y_mean[size(j)];  // (45)

    adapt_covariance(kernels, weights, stalled, threads);
    ++s.generation;
    s.asked = false;
}

void Cmaes::adapt_covariance(const Kernels& kernels, std::vector<double>& weights, bool stalled,
                             int threads) {
    const CmaesParameters& p = parameters_;
    const std::int64_t n = p.n;
    const std::int64_t rows = p.popsize;
    CmaesState& s = state_;
    double weight_sum = 0.0;
    for (std::int64_t i = 0; i < rows; ++i) {
        double& w = weights[size(i)];
        weight_sum += w;
        if (w < 0.0) {  // (46) negative updates have a length independent of the sample's
            const double length = norm(s.z.data() + i * n, n);
            w *= static_cast<double>(n) / (length * length + 1e-300);
        }
        w *= p.cmu;
    }
    weights[size(rows)] = p.c1;
    std::copy(s.pc.begin(), s.pc.end(), s.y.begin() + rows * n);
    const double missing = stalled ? p.cc * (2.0 - p.cc) : 0.0;  // delta(h_sigma)
    const double decay = std::max(1.0 + p.c1 * missing - p.c1 - p.cmu * weight_sum, 0.0);
    // (47) C <- decay C + c1 pc pc^T + cmu sum w_i y_i y_i^T
    if (separable_) {
        for (std::int64_t j = 0; j < n; ++j) s.covariance[size(j)] *= decay;
        for (std::int64_t i = 0; i <= rows; ++i) {
            for (std::int64_t j = 0; j < n; ++j) {
                const double step = s.y[size(i * n + j)];
                s.covariance[size(j)] += weights[size(i)] * step * step;
            }
        }
    } else {
        symmetric_update(kernels, s.covariance.data(), n, decay, weights.data(), s.y.data(), rows + 1,
                         threads, workspace_);
    }
    for (std::int64_t j = 0; j < n; ++j) {
        double& variance = s.covariance[size(separable_ ? j : j * n + j)];
        variance = std::max(variance, kMinVariance);
    }
}

void Cmaes::skip() {
    ++state_.generation;
    state_.asked = false;
}

}  // namespace worldmodels
