// The float32 parts of a step in either precision: LSTM units, the controller, the choice of components.

// Number of vectors that hold `lanes` lanes.
inline int vectors_of(int lanes) {
    return (lanes + kLanes - 1) / kLanes;
}

// One unit's output from its gates i, f, g, o, which lie `stride` apart: c' = sigmoid(f) c + sigmoid(i)
// tanh(g); h' = sigmoid(o) tanh(c'). Two divisions.
inline VecF lstm_unit(const float* gates, int stride, VecF& c) {
    const Ratio i = tanh_ratio(load(gates) * 0.5F);
    const Ratio f = tanh_ratio(load(gates + stride) * 0.5F);
    const Ratio g = tanh_ratio(load(gates + 2 * stride));
    const Ratio o = tanh_ratio(load(gates + 3 * stride) * 0.5F);
    const VecF ig = i.under * g.under;
    const VecF kept = c * (f.under + f.over) * ig;
    c = fma((i.under + i.over) * g.over, f.under, kept) * 0.5F / (ig * f.under);
    const Ratio t = tanh_ratio(c);
    return (o.under + o.over) * t.over * 0.5F / (o.under * t.under);
}

// Sums `count` features into R rows of a layer whose parameters are one column per lane.
template <int R>
inline void layer_part(const float* w, std::ptrdiff_t columns, const float* features, int count,
                       VecF (&acc)[R]) {
    for (int k = 0; k < count; ++k) {
        const VecF f = load(features + k * kBlock);
        for (int r = 0; r < R; ++r) acc[r] = fma(load(w + (r * columns + k) * kBlock), f, acc[r]);
    }
}

struct Features {
    const float* part[3];
    int count[3];
    int columns() const { return count[0] + count[1] + count[2]; }
};

template <int R>
inline void layer_rows(const float* w, const float* bias, const Features& f, bool squash, float* out) {
    VecF acc[R];
    for (int r = 0; r < R; ++r) acc[r] = bias ? load(bias + r * kBlock) : VecF{};
    int column = 0;
    for (int p = 0; p < 3; ++p) {
        layer_part<R>(w + column * kBlock, f.columns(), f.part[p], f.count[p], acc);
        column += f.count[p];
    }
    for (int r = 0; r < R; ++r) store(out + r * kBlock, squash ? tanh(acc[r]) : acc[r]);
}

// out (rows, kBlock) = W f + b, or its tanh if squash, for one vector of lanes; returns the parameters after
// this layer's.
inline const float* layer(const float* w, int rows, bool bias, const Features& f, bool squash, float* out) {
    const std::ptrdiff_t row = std::ptrdiff_t{f.columns()} * kBlock;
    const float* b = bias ? w + rows * row : nullptr;
    int r = 0;
    for (; r + 4 <= rows; r += 4)
        layer_rows<4>(w + r * row, b ? b + r * kBlock : b, f, squash, out + r * kBlock);
    for (; r < rows; ++r) layer_rows<1>(w + r * row, b ? b + r * kBlock : b, f, squash, out + r * kBlock);
    return w + rows * row + (bias ? rows * kBlock : 0);
}

// The index of the largest of value(0) ... value(count - 1), the first of equal ones.
template <class Value>
inline VecI argmax(Value value, int count, VecF& largest) {
    largest = value(0);
    VecI best = VecI{};
    for (int k = 1; k < count; ++k) {
        const VecF next = value(k);
        const VecI more = next > largest;
        largest = more ? next : largest;
        best = more ? splat_int(k) : best;
    }
    return best;
}

// rows (count, kBlock), for one vector of lanes, become the one-hot vectors of their largest.
inline void one_hot(float* rows, int count) {
    VecF largest;
    const VecI best = argmax([rows](int k) { return load(rows + k * kBlock); }, count, largest);
    for (int k = 0; k < count; ++k) store(rows + k * kBlock, best == k ? splat(1.0F) : VecF{});
}

inline void act(const ModelView& m, const ControllerView& c, Block& block, int vectors) {
    for (int n = 0; n < vectors; ++n) {
        const int at = n * kLanes;
        const Features inputs = {{block.x + at, block.c + at, block.h + at},
                                 {m.latent, c.use_c ? m.hidden : 0, c.use_h ? m.hidden : 0}};
        float* const action = block.x + m.latent * kBlock + at;
        const float* w = block.params + at;
        const bool squash = c.num_choices == 0;
        if (c.hidden_units > 0) {
            w = layer(w, c.hidden_units, c.bias, inputs, true, block.units + at);
            layer(w, m.action, c.bias, {{block.units + at, nullptr, nullptr}, {c.hidden_units, 0, 0}}, squash,
                  action);
        } else {
            layer(w, m.action, c.bias, inputs, squash, action);
        }
        float* rows = action;
        for (int i = 0; i < c.num_choices; rows += c.choices[i++] * kBlock) one_hot(rows, c.choices[i]);
        if (c.carracing) {  // steering, gas, brake
            store(action + kBlock, (load(action + kBlock) + 1.0F) * 0.5F);
            store(action + 2 * kBlock, maximum(load(action + 2 * kBlock), 0.0F));
        }
    }
}

// The component of one dimension: sampled from softmax(logits / temperature) by inversion, or the argmax.
// logit(k) returns the logits of component k.
template <class Logit>
inline VecI choose(Logit logit, int mixtures, VecF uniform, const Sampling& s) {
    VecF largest;
    const VecI best = argmax(logit, mixtures, largest);
    if (s.greedy) return best;
    VecF total = VecF{};
    for (int k = 0; k < mixtures; ++k) total += exp((logit(k) - largest) * s.inverse_temperature);
    const VecF target = uniform * total;
    VecF sum = VecF{};
    VecI component = VecI{};
    for (int k = 0; k + 1 < mixtures; ++k) {
        sum += exp((logit(k) - largest) * s.inverse_temperature);
        component -= target >= sum;  // a true comparison is -1
    }
    return component;
}

inline void choose_components(const ModelView& m, const Sampling& s, Block& block, int vectors) {
    const float* const logits = block.head + m.score_row() * kBlock;
    for (int n = 0; n < vectors; ++n) {
        const int at = n * kLanes;
        VecU candidate, episode, step;
        __builtin_memcpy(&candidate, block.candidate + at, sizeof candidate);
        __builtin_memcpy(&episode, block.episode + at, sizeof episode);
        __builtin_memcpy(&step, block.step + at, sizeof step);
        VecU key[2]{};
        if (block.keys != nullptr)
            for (int word = 0; word < 2; ++word)
                __builtin_memcpy(&key[word], block.keys + word * kBlock + at, sizeof key[word]);
        for (int d = 0; d < m.latent; d += 2) {
            const VecU pair = splat_bits(static_cast<std::uint32_t>(d / 2));
            const Draws draws = block.keys == nullptr
                                    ? draw(pair, step, episode, candidate, s.key[0], s.key[1])
                                    : draw(pair, step, episode, candidate, key[0], key[1]);
            for (int j = 0; j < 2 && d + j < m.latent; ++j) {
                const float* const own = logits + (d + j) * m.mixtures * kBlock + at;
                const VecI component =
                    choose([own](int k) { return load(own + k * kBlock); }, m.mixtures, draws.uniform[j], s);
                __builtin_memcpy(block.component + (d + j) * kBlock + at, &component, sizeof component);
                store(block.noise + (d + j) * kBlock + at, draws.normal[j] * s.noise_scale);
            }
        }
    }
}

// The narrow kernel: vectors of pairs of dimensions instead of lanes.
inline void choose_components_narrow(const ModelView& m, const Sampling& s, Block& block, int lanes) {
    for (int lane = 0; lane < lanes; ++lane) {
        const float* const logits = block.head + m.score_row() * kBlock + lane;
        const VecU step = splat_bits(block.step[lane]), episode = splat_bits(block.episode[lane]),
                   candidate = splat_bits(block.candidate[lane]);
        const std::uint32_t* const keys = block.keys == nullptr ? s.key : block.keys + lane;
        const std::uint32_t key0 = keys[0], key1 = keys[block.keys == nullptr ? 1 : kBlock];
        for (int first = 0; first < m.latent; first += 2 * kLanes) {
            const Draws draws =
                draw(counting(static_cast<std::uint32_t>(first / 2)), step, episode, candidate, key0, key1);
            for (int j = 0; j < 2; ++j) {
                const auto logit = [&](int k) {
                    VecF x = VecF{};
                    for (int i = 0, d = first + j; i < kLanes && d < m.latent; ++i, d += 2)
                        x[i] = logits[(d * m.mixtures + k) * kBlock];
                    return x;
                };
                const VecI component = choose(logit, m.mixtures, draws.uniform[j], s);
                const VecF noise = draws.normal[j] * s.noise_scale;
                for (int i = 0, d = first + j; i < kLanes && d < m.latent; ++i, d += 2) {
                    block.component[d * kBlock + lane] = component[i];
                    block.noise[d * kBlock + lane] = noise[i];
                }
            }
        }
    }
}

inline VecF sample(VecF mean, VecF logstd, VecF noise) {
    return fma(exp(maximum(minimum(logstd, kLogstdMax), kLogstdMin)), noise, mean);
}
