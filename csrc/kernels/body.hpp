// One step of a block of dreams: controller, LSTM, head, sampling. Included inside an ISA's anonymous
// namespace.
//
// Every lane's sums run over the inputs in one order (bias first) with fused multiply-adds, so that a lane's
// bits depend neither on its place in the block nor on the vector length.

// Accumulates R rows of a panel over columns [0, count): acc[r][n] += w[k][r] * a[k][lane].
template <int R, int N>
inline __attribute__((always_inline)) const float* accumulate(const float* w, const float* a, int count,
                                                              V (&acc)[R][N]) {
    for (int k = 0; k < count; ++k, w += kPanel, a += kBlock) {
        V in[N];
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) in[n] = load(a + n * kLanes);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const V weight = splat(w[r]);
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n) acc[r][n] = fma(weight, in[n], acc[r][n]);
        }
    }
    return w;
}

// out (kPanel, kBlock) = panel @ [a; b] + bias, for N vectors of lanes.
template <int N>
inline void panel_rows(const float* panel, const float* a, int a_count, const float* b, int b_count,
                       float* out) {
    for (int first = 0; first < kPanel; first += kRows) {
        V acc[kRows][N];
        const float* w = panel + first;
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n) acc[r][n] = splat(w[r]);
        w = accumulate<kRows, N>(w + kPanel, a, a_count, acc);
        accumulate<kRows, N>(w, b, b_count, acc);
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n) store(out + (first + r) * kBlock + n * kLanes, acc[r][n]);
    }
}

inline void panel_all(const float* panel, const float* a, int a_count, const float* b, int b_count,
                      float* out, int vectors) {
    int n = 0;
    for (; n + 2 <= vectors; n += 2)
        panel_rows<2>(panel, a + n * kLanes, a_count, b + n * kLanes, b_count, out + n * kLanes);
    if (n < vectors) panel_rows<1>(panel, a + n * kLanes, a_count, b + n * kLanes, b_count, out + n * kLanes);
}

// One unit's state from its gates: c' = sigmoid(f) c + sigmoid(i) tanh(g); h' = sigmoid(o) tanh(c'). Two
// divisions.
inline void lstm_unit(const float* gates, float* c, float* h) {
    const Ratio i = tanh_ratio(load(gates) * 0.5F);
    const Ratio f = tanh_ratio(load(gates + kBlock) * 0.5F);
    const Ratio g = tanh_ratio(load(gates + 2 * kBlock));
    const Ratio o = tanh_ratio(load(gates + 3 * kBlock) * 0.5F);
    const V ig = i.under * g.under;
    const V kept = load(c) * (f.under + f.over) * ig;
    const V next = fma((i.under + i.over) * g.over, f.under, kept) * 0.5F / (ig * f.under);
    const Ratio t = tanh_ratio(next);
    store(c, next);
    store(h, (o.under + o.over) * t.over * 0.5F / (o.under * t.under));
}

inline void lstm(const ModelView& m, Block& block, int vectors) {
    const std::ptrdiff_t panel = std::ptrdiff_t{kPanel} * (1 + m.inputs() + m.hidden);
    alignas(64) float gates[kPanel * kBlock];
    const float* w = m.lstm;
    for (int first = 0; first < m.hidden; first += kPanelUnits, w += panel) {
        panel_all(w, block.x, m.inputs(), block.h, m.hidden, gates, vectors);
        for (int u = 0; u < kPanelUnits && first + u < m.hidden; ++u)
            for (int n = 0; n < vectors; ++n) {
                const int at = (first + u) * kBlock + n * kLanes;
                lstm_unit(gates + 4 * u * kBlock + n * kLanes, block.c + at, block.h_next + at);
            }
    }
    float* const swap = block.h;
    block.h = block.h_next;
    block.h_next = swap;
}

// Sums `count` features into R rows of a layer whose parameters are one column per lane.
template <int R>
inline void layer_part(const float* w, std::ptrdiff_t columns, const float* features, int count,
                       V (&acc)[R]) {
    for (int k = 0; k < count; ++k) {
        const V f = load(features + k * kBlock);
        for (int r = 0; r < R; ++r) acc[r] = fma(load(w + (r * columns + k) * kBlock), f, acc[r]);
    }
}

struct Features {
    const float* part[3];
    int count[3];
    int columns() const { return count[0] + count[1] + count[2]; }
};

template <int R>
inline void layer_rows(const float* w, const float* bias, const Features& f, float* out) {
    V acc[R];
    for (int r = 0; r < R; ++r) acc[r] = bias ? load(bias + r * kBlock) : V{};
    int column = 0;
    for (int p = 0; p < 3; ++p) {
        layer_part<R>(w + column * kBlock, f.columns(), f.part[p], f.count[p], acc);
        column += f.count[p];
    }
    for (int r = 0; r < R; ++r) store(out + r * kBlock, tanh(acc[r]));
}

// out (rows, kBlock) = tanh(W f + b) for one vector of lanes; returns the parameters after this layer's.
inline const float* layer(const float* w, int rows, bool bias, const Features& f, float* out) {
    const std::ptrdiff_t row = std::ptrdiff_t{f.columns()} * kBlock;
    const float* b = bias ? w + rows * row : nullptr;
    int r = 0;
    for (; r + 4 <= rows; r += 4) layer_rows<4>(w + r * row, b ? b + r * kBlock : b, f, out + r * kBlock);
    for (; r < rows; ++r) layer_rows<1>(w + r * row, b ? b + r * kBlock : b, f, out + r * kBlock);
    return w + rows * row + (bias ? rows * kBlock : 0);
}

inline void act(const ModelView& m, const ControllerView& c, Block& block, int vectors) {
    for (int n = 0; n < vectors; ++n) {
        const int at = n * kLanes;
        const Features inputs = {{block.x + at, block.c + at, block.h + at},
                                 {m.latent, c.use_c ? m.hidden : 0, c.use_h ? m.hidden : 0}};
        float* const action = block.x + m.latent * kBlock + at;
        const float* w = block.params + at;
        if (c.hidden_units > 0) {
            w = layer(w, c.hidden_units, c.bias, inputs, block.units + at);
            layer(w, m.action, c.bias, {{block.units + at, nullptr, nullptr}, {c.hidden_units, 0, 0}},
                  action);
        } else {
            layer(w, m.action, c.bias, inputs, action);
        }
        if (c.carracing) {  // steering, gas, brake
            store(action + kBlock, (load(action + kBlock) + 1.0F) * 0.5F);
            store(action + 2 * kBlock, maximum(load(action + 2 * kBlock), 0.0F));
        }
    }
}

// The component of one dimension: from softmax(logits / temperature) by inversion, or the first largest.
inline I choose(const float* logits, int mixtures, V uniform, const Sampling& s) {
    V largest = load(logits);
    I best = I{};
    for (int k = 1; k < mixtures; ++k) {
        const V logit = load(logits + k * kBlock);
        const I more = logit > largest;
        largest = more ? logit : largest;
        best = more ? splat_int(k) : best;
    }
    if (s.greedy) return best;
    V total = V{};
    for (int k = 0; k < mixtures; ++k)
        total += exp((load(logits + k * kBlock) - largest) * s.inverse_temperature);
    const V target = uniform * total;
    V sum = V{};
    I component = I{};
    for (int k = 0; k + 1 < mixtures; ++k) {
        sum += exp((load(logits + k * kBlock) - largest) * s.inverse_temperature);
        component -= target >= sum;  // a true comparison is -1
    }
    return component;
}

inline void choose_components(const ModelView& m, const Sampling& s, Block& block, int vectors) {
    const float* const logits = block.head + m.score_row() * kBlock;
    for (int n = 0; n < vectors; ++n) {
        const int at = n * kLanes;
        U candidate, episode, step;
        __builtin_memcpy(&candidate, block.candidate + at, sizeof candidate);
        __builtin_memcpy(&episode, block.episode + at, sizeof episode);
        __builtin_memcpy(&step, block.step + at, sizeof step);
        for (int d = 0; d < m.latent; d += 2) {
            const Draws draws =
                draw(splat_bits(static_cast<std::uint32_t>(d / 2)), step, episode, candidate, s.key);
            for (int j = 0; j < 2 && d + j < m.latent; ++j) {
                const I component =
                    choose(logits + (d + j) * m.mixtures * kBlock + at, m.mixtures, draws.uniform[j], s);
                __builtin_memcpy(block.component + (d + j) * kBlock + at, &component, sizeof component);
                store(block.noise + (d + j) * kBlock + at, draws.normal[j] * s.noise_scale);
            }
        }
    }
}

inline V sample(V mean, V logstd, V noise) {
    return fma(exp(maximum(minimum(logstd, kLogstdMax), kLogstdMin)), noise, mean);
}

// All means and log stds, then each lane's own: for levels without a table lookup, and many mixtures.
inline void sample_all(const ModelView& m, Block& block, int vectors) {
    const std::ptrdiff_t panel = std::ptrdiff_t{kPanel} * (1 + m.hidden);
    for (int p = m.score_panels; p < m.score_panels + m.moment_panels; ++p)
        panel_all(m.head + p * panel, block.h, m.hidden, nullptr, 0, block.head + p * kPanel * kBlock,
                  vectors);
    const float* const means = block.head + m.mean_row() * kBlock;
    const float* const logstds = means + m.latent * m.mixtures * kBlock;
    for (int d = 0; d < m.latent; ++d)
        for (int n = 0; n < vectors; ++n) {
            const int at = n * kLanes;
            I component;
            __builtin_memcpy(&component, block.component + d * kBlock + at, sizeof component);
            V mean = load(means + d * m.mixtures * kBlock + at);
            V logstd = load(logstds + d * m.mixtures * kBlock + at);
            for (int k = 1; k < m.mixtures; ++k) {
                const I chosen = component == k;
                mean = chosen ? load(means + (d * m.mixtures + k) * kBlock + at) : mean;
                logstd = chosen ? load(logstds + (d * m.mixtures + k) * kBlock + at) : logstd;
            }
            store(block.x + d * kBlock + at, sample(mean, logstd, load(block.noise + d * kBlock + at)));
        }
}

#ifdef WORLDMODELS_LOOKUP
// Only the chosen component's mean and log std: each hidden unit's weights for D dimensions lie in one table,
// and a lane looks its own up. The same products in the same order as sample_all, hence the same bits.
template <int D, int N>
inline void moment_group(const ModelView& m, const float* table, Block& block, int first, int at) {
    I index[D][N];
    int offset[D];
#pragma GCC unroll 4
    for (int d = 0; d < D; ++d) {
        offset[d] = lookup_offset(d * m.mixtures);
        const int dimension = first + d < m.latent ? first + d : first;  // padding repeats the group's first
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) {
            __builtin_memcpy(&index[d][n], block.component + dimension * kBlock + at + n * kLanes, sizeof(I));
            index[d][n] += d * m.mixtures - offset[d];
        }
    }
    V mean[D][N], logstd[D][N];
#pragma GCC unroll 4
    for (int d = 0; d < D; ++d)
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) {
            mean[d][n] = lookup(table + offset[d], index[d][n]);
            logstd[d][n] = lookup(table + kTable + offset[d], index[d][n]);
        }
    const float* h = block.h + at;
    for (int k = 0; k < m.hidden; ++k, h += kBlock) {
        table += 2 * kTable;
        V in[N];
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) in[n] = load(h + n * kLanes);
#pragma GCC unroll 4
        for (int d = 0; d < D; ++d)
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n) {
                mean[d][n] = fma(lookup(table + offset[d], index[d][n]), in[n], mean[d][n]);
                logstd[d][n] = fma(lookup(table + kTable + offset[d], index[d][n]), in[n], logstd[d][n]);
            }
    }
#pragma GCC unroll 4
    for (int d = 0; d < D; ++d)
        if (first + d < m.latent)
            for (int n = 0; n < N; ++n) {
                const int to = (first + d) * kBlock + at + n * kLanes;
                store(block.x + to, sample(mean[d][n], logstd[d][n], load(block.noise + to)));
            }
}

template <int D>
inline void sample_chosen(const ModelView& m, Block& block, int vectors) {
    const float* table = m.moments;
    for (int first = 0; first < m.latent; first += D, table += std::ptrdiff_t{2} * kTable * (1 + m.hidden)) {
        int n = 0;
        for (; n + 2 <= vectors; n += 2) moment_group<D, 2>(m, table, block, first, n * kLanes);
        if (n < vectors) moment_group<D, 1>(m, table, block, first, n * kLanes);
    }
}
#endif

void step(const ModelView& m, const ControllerView* controller, const Sampling& s, Block& block, int lanes) {
    const int vectors = (lanes + kLanes - 1) / kLanes;
    if (controller != nullptr) act(m, *controller, block, vectors);
    lstm(m, block, vectors);
    const std::ptrdiff_t panel = std::ptrdiff_t{kPanel} * (1 + m.hidden);
    for (int p = 0; p < m.score_panels; ++p)
        panel_all(m.head + p * panel, block.h, m.hidden, nullptr, 0, block.head + p * kPanel * kBlock,
                  vectors);
    choose_components(m, s, block, vectors);
#ifdef WORLDMODELS_LOOKUP
    if (m.moments == nullptr)
        sample_all(m, block, vectors);
    else if (table_dims(m.mixtures) == 3)
        sample_chosen<3>(m, block, vectors);
    else
        sample_chosen<2>(m, block, vectors);
#else
    sample_all(m, block, vectors);
#endif
    if (m.restart)
        for (int n = 0; n < vectors; ++n) store(block.x + (m.inputs() - 1) * kBlock + n * kLanes, V{});
}

inline U counting(std::uint32_t first) {
    U x;
    for (int lane = 0; lane < kLanes; ++lane) x[lane] = first + static_cast<std::uint32_t>(lane);
    return x;
}

void draws(const std::uint32_t key[2], std::uint32_t candidate, std::uint32_t episode, std::uint32_t step,
           std::uint32_t count, float* out) {
    for (std::uint32_t first = 0; first < count; first += kLanes) {
        const Draws d =
            draw(counting(first), splat_bits(step), splat_bits(episode), splat_bits(candidate), key);
        for (std::uint32_t lane = 0; lane < kLanes && first + lane < count; ++lane)
            for (std::uint32_t j = 0; j < 2; ++j) {
                out[j * count + first + lane] = d.normal[j][lane];
                out[(2 + j) * count + first + lane] = d.uniform[j][lane];
            }
    }
}

void start(const std::uint32_t key[2], std::uint32_t candidate, std::uint32_t episode, int latent,
           const float* mu, const float* logvar, float* z) {
    for (int first = 0; first < latent; first += 2 * kLanes) {
        const Draws d = draw(counting(static_cast<std::uint32_t>(first / 2)), U{}, splat_bits(episode),
                             splat_bits(candidate), key);
        for (int j = 0; j < 2; ++j) {
            V mean = V{}, spread = V{};
            for (int lane = 0, i = first + j; lane < kLanes && i < latent; ++lane, i += 2) {
                mean[lane] = mu[i];
                spread[lane] = logvar[i];
            }
            const V out = fma(exp(spread * 0.5F), d.normal[j], mean);
            for (int lane = 0, i = first + j; lane < kLanes && i < latent; ++lane, i += 2) z[i] = out[lane];
        }
    }
}

inline V apply(Function f, V x) {
    V sine, cosine;
    switch (f) {
        case Function::exp:
            return exp(x);
        case Function::log:
            return log(x);
        case Function::tanh:
            return tanh(x);
        case Function::sigmoid:
            return sigmoid(x);
        case Function::sin_turns:
            sincos_turns(x, sine, cosine);
            return sine;
        case Function::cos_turns:
            sincos_turns(x, sine, cosine);
            return cosine;
    }
    return x;
}

void elementwise(Function f, const float* in, float* out, std::size_t count) {
    for (std::size_t i = 0; i < count; i += kLanes) {
        const std::size_t n = count - i < kLanes ? count - i : kLanes;
        V x = V{};
        __builtin_memcpy(&x, in + i, n * sizeof(float));
        x = apply(f, x);
        __builtin_memcpy(out + i, &x, n * sizeof(float));
    }
}
