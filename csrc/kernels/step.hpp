// One step of a block of dreams. Included inside an ISA's anonymous namespace.
//
// P is the arithmetic of the matrix products: float32, or pairs of bfloat16. Every lane's sums run over the
// inputs in one order (bias first) with fused multiply-adds, so that a lane's bits depend neither on its
// place in the block, nor on the vector length, nor on which of the kernels below computes it.

struct Float32 {
    static constexpr int kPack = 1;  // inputs to a word
    static V broadcast(const float* p) { return splat(*p); }
    static V one() { return splat(1.0F); }
    static V multiply_add(V w, V x, V sum) { return fma(w, x, sum); }
    static const float* inputs(const Block& block) { return block.x; }
    static const float* hidden(const Block& block) { return block.h; }
    static void pack(const float*, int, float*, int) {}
};

// Words that hold `count` inputs.
template <class P>
constexpr int rows(int count) {
    return (count + P::kPack - 1) / P::kPack;
}

// Two stretches of inputs, each (count, stride) words: [z, action, restart] and h, or h alone. The stride is
// kBlock, or for few lanes their number: a copy without gaps, which the first-level cache holds.
struct Inputs {
    const float* first;
    int first_count;
    const float* second;
    int second_count;
};

// Lanes that the kernel for few lanes computes at once.
constexpr int few_lanes(int lanes) {
    return lanes <= 2 ? lanes : kFewLanes;
}

inline const float* without_gaps(const float* rows, int count, int lanes, float* to) {
    const int few = few_lanes(lanes);
    for (int k = 0; k < count; ++k)
        for (int l = 0; l < few; ++l) to[k * few + l] = rows[k * kBlock + l];
    return to;
}

template <class P>
inline Inputs lstm_inputs(const ModelView& m, const Block& block, int lanes) {
    const int inputs = rows<P>(m.inputs()), hidden = rows<P>(m.hidden);
    if (lanes > kFewLanes) return {P::inputs(block), inputs, P::hidden(block), hidden};
    float* const after = block.few_inputs + inputs * few_lanes(lanes);
    return {without_gaps(P::inputs(block), inputs, lanes, block.few_inputs), inputs,
            without_gaps(P::hidden(block), hidden, lanes, after), hidden};
}
template <class P>
inline Inputs head_inputs(const ModelView& m, const Block& block, int lanes) {
    const int hidden = rows<P>(m.hidden);
    if (lanes > kFewLanes) return {P::hidden(block), hidden, nullptr, 0};
    return {without_gaps(P::hidden(block), hidden, lanes, block.few_inputs), hidden, nullptr, 0};
}
inline std::ptrdiff_t panel_size(const Inputs& in) {
    return std::ptrdiff_t{kPanel} * (1 + in.first_count + in.second_count);
}

// Accumulates R rows of a panel: acc[r][n] += w[k][r] * in[k][lane], the rows of in kStep floats apart.
template <class P, int kStep = kBlock, int R, int N>
inline __attribute__((always_inline)) const float* accumulate(const float* w, const float* in, int count,
                                                              V (&acc)[R][N]) {
    for (int k = 0; k < count; ++k, w += kPanel, in += kStep) {
        V x[N];
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) x[n] = load(in + n * kLanes);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const V weight = P::broadcast(w + r);
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n) acc[r][n] = P::multiply_add(weight, x[n], acc[r][n]);
        }
    }
    return w;
}

// out (kPanel, kBlock) = panel @ inputs + bias, for N vectors of lanes, R rows at a time.
template <class P, int R, int N>
inline void panel_rows(const float* panel, const Inputs& in, int at, float* out) {
    for (int first = 0; first < kPanel; first += R) {
        V acc[R][N];
        const float* w = panel + first;
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n) acc[r][n] = splat(w[r]);
        w = accumulate<P>(w + kPanel, in.first + at, in.first_count, acc);
        accumulate<P>(w, in.second + at, in.second_count, acc);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n) store(out + (first + r) * kBlock + at + n * kLanes, acc[r][n]);
    }
}

template <class P>
inline void panel_lanes(const float* panel, const Inputs& in, float* out, int vectors) {
    int n = 0;
    for (; n + 2 <= vectors; n += 2) panel_rows<P, kRows, 2>(panel, in, n * kLanes, out);
    if (n < vectors) panel_rows<P, kRowsAlone, 1>(panel, in, n * kLanes, out);
}

// For few lanes: rows across the vector, inputs broadcast, G panels at once. Vectors past a panel's end read
// on into what follows it (pack_* pad the last one); those sums are dropped.
inline constexpr int kPanelVectors = (kPanel + kLanes - 1) / kLanes;

template <class P, int G, int L>
inline __attribute__((always_inline)) std::ptrdiff_t accumulate_few(const float* panels,
                                                                    std::ptrdiff_t stride, std::ptrdiff_t at,
                                                                    const float* in, int count,
                                                                    V (&acc)[G][kPanelVectors][L]) {
    for (int k = 0; k < count; ++k, at += kPanel, in += L) {
        V x[L];
#pragma GCC unroll 4
        for (int l = 0; l < L; ++l) x[l] = P::broadcast(in + l);
#pragma GCC unroll 16
        for (int g = 0; g < G; ++g)
#pragma GCC unroll 4
            for (int v = 0; v < kPanelVectors; ++v) {
                const V weight = load_unaligned(panels + g * stride + at + v * kLanes);
#pragma GCC unroll 4
                for (int l = 0; l < L; ++l) acc[g][v][l] = P::multiply_add(weight, x[l], acc[g][v][l]);
            }
    }
    return at;
}

template <class P, int G, int L, class Put>
inline void panels_few(const float* panels, const Inputs& in, int first, Put put) {
    const std::ptrdiff_t stride = panel_size(in);
    panels += first * stride;
    V acc[G][kPanelVectors][L];
#pragma GCC unroll 16
    for (int g = 0; g < G; ++g)
#pragma GCC unroll 4
        for (int v = 0; v < kPanelVectors; ++v)
#pragma GCC unroll 4
            for (int l = 0; l < L; ++l) acc[g][v][l] = load_unaligned(panels + g * stride + v * kLanes);
    const std::ptrdiff_t at = accumulate_few<P>(panels, stride, kPanel, in.first, in.first_count, acc);
    accumulate_few<P>(panels, stride, at, in.second, in.second_count, acc);
    alignas(64) float sums[kPanelVectors * kLanes];
    for (int g = 0; g < G; ++g)
        for (int l = 0; l < L; ++l) {
            for (int v = 0; v < kPanelVectors; ++v) store(sums + v * kLanes, acc[g][v][l]);
            for (int r = 0; r < kPanel; ++r) put(first + g, r, l, sums[r]);
        }
}

// Calls put(panel, row, lane, sum) for all rows of `count` panels.
template <class P, int L, class Put>
inline void all_panels_few(const float* panels, int count, const Inputs& in, Put put) {
    constexpr int G = kFewSums / (kPanelVectors * L);
    int p = 0;
    for (; p + G <= count; p += G) panels_few<P, G, L>(panels, in, p, put);
    for (; p < count; ++p) panels_few<P, 1, L>(panels, in, p, put);
}

// f<L>() for the number of lanes that the kernel for few lanes computes at once.
template <class F>
inline void with_few_lanes(int lanes, F f) {
    switch (few_lanes(lanes)) {
        case 1:
            return f.template operator()<1>();
        case 2:
            return f.template operator()<(kFewLanes < 2 ? 1 : 2)>();
        default:
            return f.template operator()<kFewLanes>();
    }
}

// out (count * kPanel, kBlock) = all rows of `count` panels of the head.
template <class P>
inline void head_panels(const float* panels, int count, const Inputs& in, float* out, int lanes) {
    if (lanes <= kFewLanes)
        return with_few_lanes(lanes, [&]<int L>() {
            all_panels_few<P, L>(panels, count, in, [out](int panel, int row, int lane, float sum) {
                out[(panel * kPanel + row) * kBlock + lane] = sum;
            });
        });
    for (int p = 0; p < count; ++p)
        panel_lanes<P>(panels + p * panel_size(in), in, out + p * kPanel * kBlock, vectors_of(lanes));
}

// The LSTM of few lanes: gates (4, L, units), then vectors of units instead of lanes.
template <class P, int L>
inline void lstm_few(const ModelView& m, Block& block, const Inputs& in, int panels) {
    const int units = few_units(m.hidden);
    float* const gates = block.few_gates;
    all_panels_few<P, L>(m.lstm, panels, in, [=](int panel, int row, int lane, float sum) {
        gates[((row % 4) * L + lane) * units + panel * kPanelUnits + row / 4] = sum;
    });
    for (int lane = 0; lane < L; ++lane)
        for (int unit = 0; unit < m.hidden; unit += kLanes) {
            const int count = m.hidden - unit < kLanes ? m.hidden - unit : kLanes;
            float* const c = block.c + unit * kBlock + lane;
            float* const h = block.h_next + unit * kBlock + lane;
            V state = V{};
            for (int i = 0; i < count; ++i) state[i] = c[i * kBlock];
            const V out = lstm_unit(gates + lane * units + unit, L * units, state);
            for (int i = 0; i < count; ++i) {
                c[i * kBlock] = state[i];
                h[i * kBlock] = out[i];
            }
        }
}

template <class P>
inline void lstm(const ModelView& m, Block& block, int lanes) {
    const Inputs in = lstm_inputs<P>(m, block, lanes);
    const int panels = (m.hidden + kPanelUnits - 1) / kPanelUnits;
    if (lanes <= kFewLanes) {
        with_few_lanes(lanes, [&]<int L>() { lstm_few<P, L>(m, block, in, panels); });
    } else {
        alignas(64) float gates[kPanel * kBlock];
        for (int p = 0; p < panels; ++p) {
            panel_lanes<P>(m.lstm + p * panel_size(in), in, gates, vectors_of(lanes));
            for (int u = 0; u < kPanelUnits && p * kPanelUnits + u < m.hidden; ++u)
                for (int n = 0; n < vectors_of(lanes); ++n) {
                    const int at = (p * kPanelUnits + u) * kBlock + n * kLanes;
                    V state = load(block.c + at);
                    store(block.h_next + at, lstm_unit(gates + 4 * u * kBlock + n * kLanes, kBlock, state));
                    store(block.c + at, state);
                }
        }
    }
    float* const swap = block.h;
    block.h = block.h_next;
    block.h_next = swap;
}

// All means and log stds, then each lane's own: for levels without a table lookup, and many mixtures.
template <class P>
inline void sample_all(const ModelView& m, Block& block, int lanes) {
    const Inputs in = head_inputs<P>(m, block, lanes);
    const int vectors = vectors_of(lanes);
    head_panels<P>(m.head + m.score_panels * panel_size(in), m.moment_panels, in,
                   block.head + m.mean_row() * kBlock, lanes);
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
template <class P, int D, int N>
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
    const float* h = P::hidden(block) + at;
    for (int k = 0; k < rows<P>(m.hidden); ++k, h += kBlock) {
        table += 2 * kTable;
        V in[N];
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) in[n] = load(h + n * kLanes);
#pragma GCC unroll 4
        for (int d = 0; d < D; ++d)
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n) {
                mean[d][n] = P::multiply_add(lookup(table + offset[d], index[d][n]), in[n], mean[d][n]);
                logstd[d][n] =
                    P::multiply_add(lookup(table + kTable + offset[d], index[d][n]), in[n], logstd[d][n]);
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

template <class P, int D>
inline void sample_chosen(const ModelView& m, Block& block, int vectors) {
    const float* table = m.moments;
    for (int first = 0; first < m.latent;
         first += D, table += std::ptrdiff_t{2} * kTable * (1 + rows<P>(m.hidden))) {
        int n = 0;
        for (; n + 2 <= vectors; n += 2) moment_group<P, D, 2>(m, table, block, first, n * kLanes);
        if (n < vectors) moment_group<P, D, 1>(m, table, block, first, n * kLanes);
    }
}
#endif

// Moves the memory of the first `lanes` lanes on.
template <class P>
inline void remember_lanes(const ModelView& m, Block& block, int lanes) {
    const int vectors = vectors_of(lanes);
    P::pack(block.x, m.inputs(), block.x_words, vectors);
    P::pack(block.h, m.hidden, block.h_words, vectors);
    lstm<P>(m, block, lanes);
}

// Plays one step of the first `lanes` lanes; returns how many it computed.
template <class P>
inline int step_lanes(const ModelView& m, const ControllerView* controller, const Sampling& s, Block& block,
                      int lanes) {
    const int vectors = vectors_of(lanes);
    if (controller != nullptr) act(m, *controller, block, vectors);
    remember_lanes<P>(m, block, lanes);
    P::pack(block.h, m.hidden, block.h_words, vectors);
    head_panels<P>(m.head, m.score_panels, head_inputs<P>(m, block, lanes), block.head, lanes);
    if (lanes <= kFewLanes)
        choose_components_few(m, s, block, lanes);
    else
        choose_components(m, s, block, vectors);
#ifdef WORLDMODELS_LOOKUP
    if (m.moments == nullptr || lanes <= kFewLanes)
        sample_all<P>(m, block, lanes);
    else if (table_dims(m.mixtures) == 3)
        sample_chosen<P, 3>(m, block, vectors);
    else
        sample_chosen<P, 2>(m, block, vectors);
#else
    sample_all<P>(m, block, lanes);
#endif
    if (m.restart)
        for (int n = 0; n < vectors; ++n) store(block.x + (m.inputs() - 1) * kBlock + n * kLanes, V{});
    return lanes <= kFewLanes ? few_lanes(lanes) : vectors * kLanes;
}

template <class P>
inline double multiply_adds(int rounds) {
    constexpr int kSums = 12;  // enough to fill two pipes of latency 4
    V sums[kSums];
#pragma GCC unroll 16
    for (int i = 0; i < kSums; ++i)
        sums[i] = splat(static_cast<float>(i));  // all different: none is left out
    V x = P::one();
    for (int round = 0; round < rounds; ++round) {
        __asm__ volatile("" : "+m"(x));  // not a constant: nothing can be left out
        const V w = x;
#pragma GCC unroll 16
        for (int i = 0; i < kSums; ++i) sums[i] = P::multiply_add(w, w, sums[i]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kSums; ++i) x += sums[i];
    __asm__ volatile("" : : "m"(x));
    return 2.0 * kSums * kLanes * P::kPack * rounds;
}
