// The elementwise parts of M's training: one row of LSTM units forward and backward, and the mixture density
// loss with its gradient. Rows are padded to whole vectors.

inline VecF sigmoid(VecF x) {
    const Ratio t = tanh_ratio(x * 0.5F);
    return minimum((t.under + t.over) / (t.under + t.under), 1.0F);
}

// gates (4, units): in, the gates i, f, g, o before their activations; out, after them. c_before (units).
void lstm_forward(int units, float* gates, const float* c_before, float* c, float* h) {
    for (int u = 0; u < units; u += kLanes) {
        const VecF i = sigmoid(load(gates + u)), f = sigmoid(load(gates + units + u));
        const VecF g = tanh(load(gates + 2 * units + u)), o = sigmoid(load(gates + 3 * units + u));
        const VecF state = fma(f, load(c_before + u), i * g);
        store(gates + u, i);
        store(gates + units + u, f);
        store(gates + 2 * units + u, g);
        store(gates + 3 * units + u, o);
        store(c + u, state);
        store(h + u, o * tanh(state));
    }
}

// gates (4, units): in, after their activations; out, the gradient before them. dh (units): gradient of h.
// dc (units): gradient of c through the later steps; out, of c_before.
void lstm_backward(int units, float* gates, const float* c_before, const float* c, const float* dh,
                   float* dc) {
    for (int u = 0; u < units; u += kLanes) {
        const VecF i = load(gates + u), f = load(gates + units + u);
        const VecF g = load(gates + 2 * units + u), o = load(gates + 3 * units + u);
        const VecF t = tanh(load(c + u)), out = load(dh + u);
        const VecF state = fma(out * o, 1.0F - t * t, load(dc + u));
        store(gates + u, state * g * i * (1.0F - i));
        store(gates + units + u, state * load(c_before + u) * f * (1.0F - f));
        store(gates + 2 * units + u, state * i * (1.0F - g * g));
        store(gates + 3 * units + u, out * t * o * (1.0F - o));
        store(dc + u, state * f);
    }
}

// Negative log-likelihood of z (latent) in nats, summed over its dimensions, and its gradient times `scale`.
// head (3, mixtures, width): in, logits, means and log stds; out, their gradient. width: latent, padded to
// whole vectors. scratch (3, mixtures, kLanes).
double mdn_loss(int latent, int width, int mixtures, float scale, const float* z, float* head,
                float* scratch) {
    constexpr float kHalfLogTwoPi = 0.918938533F;
    const int part = mixtures * width;
    float* const weight = scratch;
    float* const scaled = weight + mixtures * kLanes;
    float* const inverse = scaled + mixtures * kLanes;
    double total = 0.0;
    for (int d = 0; d < width; d += kLanes) {
        VecF z_next = VecF{};
        for (int lane = 0; lane < kLanes && d + lane < latent; ++lane) z_next[lane] = z[d + lane];
        VecF largest = load(head + d);
        for (int k = 1; k < mixtures; ++k) {
            const VecF logit = load(head + k * width + d);
            largest = logit > largest ? logit : largest;
        }
        VecF sum = VecF{};
        for (int k = 0; k < mixtures; ++k) {
            const VecF e = exp(load(head + k * width + d) - largest);
            store(weight + k * kLanes, e);
            sum += e;
        }
        // log-density of every component, with the softmax's normalizer left out
        VecF most = splat(-__builtin_inff());
        for (int k = 0; k < mixtures; ++k) {
            float* const at = head + k * width + d;
            const VecF logstd = maximum(minimum(load(at + 2 * part), kLogstdMax), kLogstdMin);
            const VecF inv = exp(-logstd);
            const VecF u = (z_next - load(at + part)) * inv;
            const VecF density = fma(u * -0.5F, u, load(at) - largest) - logstd;
            store(scaled + k * kLanes, u);
            store(inverse + k * kLanes, inv);
            store(at, density);
            most = density > most ? density : most;
        }
        VecF likelihood = VecF{};
        for (int k = 0; k < mixtures; ++k) {
            float* const at = head + k * width + d;
            const VecF e = exp(load(at) - most);
            store(at, e);
            likelihood += e;
        }
        const VecF nll = log(sum) - log(likelihood) - most + kHalfLogTwoPi;
        VecF gradient = splat(scale);
        for (int lane = 0; lane < kLanes; ++lane) {
            if (d + lane < latent)
                total += static_cast<double>(nll[lane]);
            else
                gradient[lane] = 0.0F;
        }
        const VecF each = 1.0F / sum, share = 1.0F / likelihood;
        for (int k = 0; k < mixtures; ++k) {
            float* const at = head + k * width + d;
            const VecF responsibility = load(at) * share * gradient, u = load(scaled + k * kLanes);
            const VecF raw = load(at + 2 * part);
            const VecI inside = (raw >= kLogstdMin) & (raw <= kLogstdMax);
            store(at, fma(load(weight + k * kLanes) * each, gradient, -responsibility));
            store(at + part, -responsibility * u * load(inverse + k * kLanes));
            store(at + 2 * part, inside ? fma(-u, u, splat(1.0F)) * responsibility : VecF{});
        }
    }
    return total;
}

template <class P>
constexpr RNNKernels rnn_kernels() {
    return {
        .pack = P::kPack,
        .depth = kMatmulDepth,
        .pack_left = pack_left<P>,
        .pack_left_columns = pack_left_columns<P>,
        .pack_right = pack_right<P>,
        .pack_right_columns = pack_right_columns<P>,
        .matmul = matmul<P, FromRows>,
        .matmul_columns = matmul<P, FromColumns>,
        .add_rows = add_rows,
        .lstm_forward = lstm_forward,
        .lstm_backward = lstm_backward,
        .mdn_loss = mdn_loss,
    };
}
