// One step of a block of dreams: controller, LSTM, heads and sampling.
//
// P is the arithmetic of the matrix products: float32, or pairs of bfloat16. Every lane's sums run over the
// inputs in the same order (bias first) with fused multiply-adds. A lane's bits depend neither on its place
// in the block, nor on the vector length, nor on which of the kernels below computes it. Narrow kernels serve
// at most kNarrowLanes lanes: their vectors hold rows of a panel instead of lanes.

struct Float32 {
    static constexpr int kPack = 1;  // inputs per float
    static VecF broadcast(const float* p) { return splat(*p); }
    static VecF one() { return splat(1.0F); }
    static VecF multiply_add(VecF w, VecF x, VecF sum) { return fma(w, x, sum); }
    static const float* inputs(const Block& block) { return block.x; }
    static const float* hidden(const Block& block) { return block.h; }
    static void pack(const float*, int, float*, int) {}
    // to (count) = successive k of a row.
    static void pack_row(int count, const float* x, float* to) {
        __builtin_memcpy(to, x, static_cast<std::size_t>(count) * sizeof *x);
    }
    // to (count) = columns of the row of one k.
    static void pack_columns(int count, const float* x, const float*, float* to) { pack_row(count, x, to); }
};

// Number of floats that hold `count` inputs.
template <class P>
constexpr int rows(int count) {
    return (count + P::kPack - 1) / P::kPack;
}

// One or two parts of a layer's inputs, each (count, stride): [z, action, restart] and h, or h alone. The
// stride is kBlock; in narrow kernels it is the number of lanes, a contiguous copy that fits the L1 cache.
struct Inputs {
    const float* first;
    int first_count;
    const float* second;
    int second_count;
};

// Lanes that a narrow kernel computes at once.
constexpr int narrow_lanes(int lanes) {
    return lanes <= 2 ? lanes : kNarrowLanes;
}

inline const float* contiguous(const float* rows, int count, int lanes, float* to) {
    const int stride = narrow_lanes(lanes);
    for (int k = 0; k < count; ++k)
        for (int l = 0; l < stride; ++l) to[k * stride + l] = rows[k * kBlock + l];
    return to;
}

template <class P>
inline Inputs lstm_inputs(const ModelView& m, const Block& block, int lanes) {
    const int inputs = rows<P>(m.inputs()), hidden = rows<P>(m.hidden);
    if (lanes > kNarrowLanes) return {P::inputs(block), inputs, P::hidden(block), hidden};
    float* const after = block.narrow_inputs + inputs * narrow_lanes(lanes);
    return {contiguous(P::inputs(block), inputs, lanes, block.narrow_inputs), inputs,
            contiguous(P::hidden(block), hidden, lanes, after), hidden};
}
template <class P>
inline Inputs head_inputs(const ModelView& m, const Block& block, int lanes) {
    const int hidden = rows<P>(m.hidden);
    if (lanes > kNarrowLanes) return {P::hidden(block), hidden, nullptr, 0};
    return {contiguous(P::hidden(block), hidden, lanes, block.narrow_inputs), hidden, nullptr, 0};
}
inline std::ptrdiff_t panel_size(const Inputs& in) {
    return std::ptrdiff_t{kPanel} * (1 + in.first_count + in.second_count);
}

// Accumulates R rows of a panel: acc[r][n] += w[k][r] * in[k][lane]. Successive k are kStep floats apart in
// `in` and kWeights in `w`, whose rows are kRowStep apart.
template <class P, int kStep = kBlock, int kWeights = kPanel, int kRowStep = 1, int R, int N>
inline __attribute__((always_inline)) const float* accumulate(const float* w, const float* in, int count,
                                                              VecF (&acc)[R][N]) {
    for (int k = 0; k < count; ++k, w += kWeights, in += kStep) {
        VecF x[N];
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) x[n] = load(in + n * kLanes);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const VecF weight = P::broadcast(w + r * kRowStep);
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
        VecF acc[R][N];
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

// Narrow kernels: rows across the vector, inputs broadcast, G panels at once. A vector past a panel's end
// reads the floats that follow (kPanelPadding after the last panel); those sums are dropped.
inline constexpr int kPanelVectors = (kPanel + kLanes - 1) / kLanes;

template <class P, int G, int L>
inline __attribute__((always_inline)) std::ptrdiff_t accumulate_narrow(const float* panels,
                                                                       std::ptrdiff_t stride,
                                                                       std::ptrdiff_t at, const float* in,
                                                                       int count,
                                                                       VecF (&acc)[G][kPanelVectors][L]) {
    for (int k = 0; k < count; ++k, at += kPanel, in += L) {
        VecF x[L];
#pragma GCC unroll 4
        for (int l = 0; l < L; ++l) x[l] = P::broadcast(in + l);
#pragma GCC unroll 16
        for (int g = 0; g < G; ++g)
#pragma GCC unroll 4
            for (int v = 0; v < kPanelVectors; ++v) {
                const VecF weight = load_unaligned(panels + g * stride + at + v * kLanes);
#pragma GCC unroll 4
                for (int l = 0; l < L; ++l) acc[g][v][l] = P::multiply_add(weight, x[l], acc[g][v][l]);
            }
    }
    return at;
}

template <class P, int G, int L, class Put>
inline void panels_narrow(const float* panels, const Inputs& in, int first, Put put) {
    const std::ptrdiff_t stride = panel_size(in);
    panels += first * stride;
    VecF acc[G][kPanelVectors][L];
#pragma GCC unroll 16
    for (int g = 0; g < G; ++g)
#pragma GCC unroll 4
        for (int v = 0; v < kPanelVectors; ++v)
#pragma GCC unroll 4
            for (int l = 0; l < L; ++l) acc[g][v][l] = load_unaligned(panels + g * stride + v * kLanes);
    const std::ptrdiff_t at = accumulate_narrow<P>(panels, stride, kPanel, in.first, in.first_count, acc);
    accumulate_narrow<P>(panels, stride, at, in.second, in.second_count, acc);
    alignas(64) float sums[kPanelVectors * kLanes];
    for (int g = 0; g < G; ++g)
        for (int l = 0; l < L; ++l) {
            for (int v = 0; v < kPanelVectors; ++v) store(sums + v * kLanes, acc[g][v][l]);
            for (int r = 0; r < kPanel; ++r) put(first + g, r, l, sums[r]);
        }
}

// Calls put(panel, row, lane, sum) for all rows of `count` panels.
template <class P, int L, class Put>
inline void all_panels_narrow(const float* panels, int count, const Inputs& in, Put put) {
    constexpr int G = kNarrowSums / (kPanelVectors * L);
    int p = 0;
    for (; p + G <= count; p += G) panels_narrow<P, G, L>(panels, in, p, put);
    for (; p < count; ++p) panels_narrow<P, 1, L>(panels, in, p, put);
}

// Calls f<L>() for the number of lanes that a narrow kernel computes at once.
template <class F>
inline void with_narrow_lanes(int lanes, F f) {
    switch (narrow_lanes(lanes)) {
        case 1:
            return f.template operator()<1>();
        case 2:
            return f.template operator()<(kNarrowLanes < 2 ? 1 : 2)>();
        default:
            return f.template operator()<kNarrowLanes>();
    }
}

// out (count * kPanel, kBlock) = all rows of `count` panels of the head.
template <class P>
inline void head_panels(const float* panels, int count, const Inputs& in, float* out, int lanes) {
    if (lanes <= kNarrowLanes)
        return with_narrow_lanes(lanes, [&]<int L>() {
            all_panels_narrow<P, L>(panels, count, in, [out](int panel, int row, int lane, float sum) {
                out[(panel * kPanel + row) * kBlock + lane] = sum;
            });
        });
    for (int p = 0; p < count; ++p)
        panel_lanes<P>(panels + p * panel_size(in), in, out + p * kPanel * kBlock, vectors_of(lanes));
}

// The narrow LSTM: gates (4, L, units), then vectors of units instead of lanes.
template <class P, int L>
inline void lstm_narrow(const ModelView& m, Block& block, const Inputs& in, int panels) {
    const int units = narrow_units(m.hidden);
    float* const gates = block.narrow_gates;
    all_panels_narrow<P, L>(m.lstm, panels, in, [=](int panel, int row, int lane, float sum) {
        gates[((row % 4) * L + lane) * units + panel * kPanelUnits + row / 4] = sum;
    });
    for (int lane = 0; lane < L; ++lane)
        for (int unit = 0; unit < m.hidden; unit += kLanes) {
            const int count = m.hidden - unit < kLanes ? m.hidden - unit : kLanes;
            float* const c = block.c + unit * kBlock + lane;
            float* const h = block.h_next + unit * kBlock + lane;
            VecF state = VecF{};
            for (int i = 0; i < count; ++i) state[i] = c[i * kBlock];
            const VecF out = lstm_unit(gates + lane * units + unit, L * units, state);
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
    if (lanes <= kNarrowLanes) {
        with_narrow_lanes(lanes, [&]<int L>() { lstm_narrow<P, L>(m, block, in, panels); });
    } else {
        alignas(64) float gates[kPanel * kBlock];
        for (int p = 0; p < panels; ++p) {
            panel_lanes<P>(m.lstm + p * panel_size(in), in, gates, vectors_of(lanes));
            for (int u = 0; u < kPanelUnits && p * kPanelUnits + u < m.hidden; ++u)
                for (int n = 0; n < vectors_of(lanes); ++n) {
                    const int at = (p * kPanelUnits + u) * kBlock + n * kLanes;
                    VecF state = load(block.c + at);
                    store(block.h_next + at, lstm_unit(gates + 4 * u * kBlock + n * kLanes, kBlock, state));
                    store(block.c + at, state);
                }
        }
    }
    float* const swap = block.h;
    block.h = block.h_next;
    block.h_next = swap;
}

// Computes all means and log stds, then selects those of each lane's component: for targets without a table
// lookup, and for many mixtures.
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
            VecI component;
            __builtin_memcpy(&component, block.component + d * kBlock + at, sizeof component);
            VecF mean = load(means + d * m.mixtures * kBlock + at);
            VecF logstd = load(logstds + d * m.mixtures * kBlock + at);
            for (int k = 1; k < m.mixtures; ++k) {
                const VecI chosen = component == k;
                mean = chosen ? load(means + (d * m.mixtures + k) * kBlock + at) : mean;
                logstd = chosen ? load(logstds + (d * m.mixtures + k) * kBlock + at) : logstd;
            }
            store(block.x + d * kBlock + at, sample(mean, logstd, load(block.noise + d * kBlock + at)));
        }
}

#ifdef WORLDMODELS_LOOKUP
// Only the chosen component's mean and log std: each hidden unit's weights for kDims dimensions lie in one
// table, and each lane looks up its own. Products and order are those of sample_all, hence the same bits.
template <class P, int kDims, int N>
inline void moment_group(const ModelView& m, const float* table, Block& block, int first, int at) {
    VecI index[kDims][N];
    int offset[kDims];
#pragma GCC unroll 4
    for (int d = 0; d < kDims; ++d) {
        offset[d] = lookup_offset(d * m.mixtures);
        const int dimension = first + d < m.latent ? first + d : first;  // padding repeats the group's first
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) {
            __builtin_memcpy(&index[d][n], block.component + dimension * kBlock + at + n * kLanes,
                             sizeof(VecI));
            index[d][n] += d * m.mixtures - offset[d];
        }
    }
    VecF mean[kDims][N], logstd[kDims][N];
#pragma GCC unroll 4
    for (int d = 0; d < kDims; ++d)
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) {
            mean[d][n] = lookup(table + offset[d], index[d][n]);
            logstd[d][n] = lookup(table + kTable + offset[d], index[d][n]);
        }
    const float* h = P::hidden(block) + at;
    for (int k = 0; k < rows<P>(m.hidden); ++k, h += kBlock) {
        table += 2 * kTable;
        VecF in[N];
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) in[n] = load(h + n * kLanes);
#pragma GCC unroll 4
        for (int d = 0; d < kDims; ++d)
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n) {
                mean[d][n] = P::multiply_add(lookup(table + offset[d], index[d][n]), in[n], mean[d][n]);
                logstd[d][n] =
                    P::multiply_add(lookup(table + kTable + offset[d], index[d][n]), in[n], logstd[d][n]);
            }
    }
#pragma GCC unroll 4
    for (int d = 0; d < kDims; ++d)
        if (first + d < m.latent)
            for (int n = 0; n < N; ++n) {
                const int to = (first + d) * kBlock + at + n * kLanes;
                store(block.x + to, sample(mean[d][n], logstd[d][n], load(block.noise + to)));
            }
}

template <class P, int kDims>
inline void sample_chosen(const ModelView& m, Block& block, int vectors) {
    const float* table = m.moments;
    for (int first = 0; first < m.latent;
         first += kDims, table += std::ptrdiff_t{2} * kTable * (1 + rows<P>(m.hidden))) {
        int n = 0;
        for (; n + 2 <= vectors; n += 2) moment_group<P, kDims, 2>(m, table, block, first, n * kLanes);
        if (n < vectors) moment_group<P, kDims, 1>(m, table, block, first, n * kLanes);
    }
}
#endif

// Advances the LSTM state of the first `lanes` lanes.
template <class P>
inline void lstm_step_lanes(const ModelView& m, Block& block, int lanes) {
    const int vectors = vectors_of(lanes);
    P::pack(block.x, m.inputs(), block.x_packed, vectors);
    P::pack(block.h, m.hidden, block.h_packed, vectors);
    lstm<P>(m, block, lanes);
}

// The actions of the first `lanes` lanes.
inline void act_lanes(const ModelView& m, const ControllerView& controller, Block& block, int lanes) {
    act(m, controller, block, vectors_of(lanes));
}

// One step of the first `lanes` lanes. Returns the number of lanes computed.
template <class P>
inline int step_lanes(const ModelView& m, const ControllerView* controller, const Sampling& s, Block& block,
                      int lanes) {
    const int vectors = vectors_of(lanes);
    if (controller != nullptr) act(m, *controller, block, vectors);
    lstm_step_lanes<P>(m, block, lanes);
    P::pack(block.h, m.hidden, block.h_packed, vectors);
    head_panels<P>(m.head, m.score_panels, head_inputs<P>(m, block, lanes), block.head, lanes);
    if (lanes <= kNarrowLanes)
        choose_components_narrow(m, s, block, lanes);
    else
        choose_components(m, s, block, vectors);
#ifdef WORLDMODELS_LOOKUP
    if (m.moments == nullptr || lanes <= kNarrowLanes)
        sample_all<P>(m, block, lanes);
    else if (table_dims(m.mixtures) == 3)
        sample_chosen<P, 3>(m, block, vectors);
    else
        sample_chosen<P, 2>(m, block, vectors);
#else
    sample_all<P>(m, block, lanes);
#endif
    if (m.restart)
        for (int n = 0; n < vectors; ++n) store(block.x + (m.inputs() - 1) * kBlock + n * kLanes, VecF{});
    return lanes <= kNarrowLanes ? narrow_lanes(lanes) : vectors * kLanes;
}
