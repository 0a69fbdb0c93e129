// Heads of few labels: all their logits written out, in one call forward and one for each kind of gradient.
//
// A task is a block of one head's rows, or a panel of one head's features; what it writes does not depend on the number of
// threads. rlpheads.kernels.native builds this file, rlpheads.kernels.batched.batched_native calls it, and
// rlpheads.kernels.batched.written_rows holds the same in plain PyTorch.

#include "batched_heads.h"

namespace {

void write_row(const BatchedHeads& heads, const BatchedOutputs& out, Kind kind, int64_t number, float* z) {
    const RowLabels labels = labels_of(heads, number);
    const auto row_of = [&](float* matrix) { return matrix == nullptr ? nullptr : matrix + number * heads.num_labels; };
    float *class_gradient = row_of(out.class_gradient), *feature_gradient = row_of(out.feature_gradient);
    std::vector<float> spare(kind == ENTROPY && feature_gradient == nullptr ? heads.num_labels : 0);
    float* moments = kind != ENTROPY ? nullptr : feature_gradient == nullptr ? spare.data() : feature_gradient;
    const HeldClasses held = {0, heads.num_labels};
    const Row row(sum_range(z, held, labels, kind, moments), labels, heads.num_labels);
    write_values(row, kind, heads.num_labels, number, out);
    if (feature_gradient != nullptr)
        write_gradient(row.regularizer_gradient(kind), labels, held, z, moments, feature_gradient);
    if (class_gradient != nullptr)
        write_gradient(row.cross_entropy(), labels, held, z, nullptr, class_gradient);
}

// Panels of PANEL features over all heads: number -> head and first feature.
struct Panels {
    std::vector<int64_t> first_panel;

    explicit Panels(const BatchedHeads& heads) : first_panel(heads.num_heads + 1) {
        for (int64_t h = 0; h < heads.num_heads; ++h)
            first_panel[h + 1] = first_panel[h] + (heads.num_features[h] + PANEL - 1) / PANEL;
    }

    int64_t count() const { return first_panel.back(); }

    int64_t head_of(int64_t panel) const {
        return std::upper_bound(first_panel.begin(), first_panel.end(), panel) - first_panel.begin() - 1;
    }
};

}  // namespace

extern "C" {

// Returns 0, or what was wrong: nothing useful is written then.
int rlpheads_batched_forward(const BatchedHeads* heads, const BatchedOutputs* out, int64_t kind, int threads) try {
    if (!has_good_values(*heads, heads->num_labels)) return BAD_VALUES;
    const int64_t block = std::min<int64_t>(MOST_ROWS, heads->num_rows);
    const int64_t blocks = block == 0 ? 0 : (heads->num_rows + block - 1) / block;
    const int team = worthy_threads(*heads, threads);
    std::vector<float> spare(out->logits == nullptr ? team * block * heads->num_labels : 0);
    bool lacks_memory = false;
#pragma omp parallel for num_threads(team) schedule(static) reduction(|| : lacks_memory)
    for (int64_t task = 0; task < blocks * heads->num_heads; ++task) {
        const int64_t head = task / blocks, first = task % blocks * block, depth = heads->num_features[head];
        const int64_t rows = std::min(block, heads->num_rows - first);
        float* z = out->logits == nullptr ? spare.data() + omp_get_thread_num() * block * heads->num_labels
                                          : out->logits + (head * heads->num_rows + first) * heads->num_labels;
        if (out->logits == nullptr)
            dot_product_matrix(rows, heads->num_labels, depth, heads->features[head] + first * depth,
                               heads->weights[head], heads->biases[head], z);
        try {
            for (int64_t b = 0; b < rows; ++b)
                write_row(*heads, *out, static_cast<Kind>(kind), head * heads->num_rows + first + b,
                          z + b * heads->num_labels);
        } catch (const std::bad_alloc&) {
            lacks_memory = true;
        }
    }
    return lacks_memory ? NO_MEMORY : 0;
} catch (const std::bad_alloc&) {
    return NO_MEMORY;
}

// weight_gradients[h] (K, D) = (upstream * gradient)^T X and bias_gradients[h] (K) = its sums; nulls are left out.
int rlpheads_batched_class_gradients(const BatchedHeads* heads, const float* gradient, const float* upstream,
                                     float* const* weight_gradients, float* const* bias_gradients, int threads) try {
    const int64_t rows = heads->num_rows, labels = heads->num_labels;
    const Panels panels(*heads);
    const int team = worthy_threads(*heads, threads);
    std::vector<float> packed(team * rows * PANEL);
#pragma omp parallel for num_threads(team) schedule(static)
    for (int64_t task = 0; task < panels.count(); ++task) {
        const int64_t head = panels.head_of(task), first = (task - panels.first_panel[head]) * PANEL;
        const int64_t depth = heads->num_features[head], columns = std::min<int64_t>(PANEL, depth - first);
        const float *of_head = gradient + head * rows * labels, *scale = upstream + head * rows;
        if (weight_gradients[head] != nullptr) {
            float* panel = packed.data() + omp_get_thread_num() * rows * PANEL;
            pack_scaled(rows, depth, columns, heads->features[head] + first, scale, panel);
            outer_product_panel(labels, rows, {of_head, 1, labels}, panel, weight_gradients[head] + first, depth,
                                columns, false);
        }
        if (first == 0 && bias_gradients[head] != nullptr) {
            std::fill(bias_gradients[head], bias_gradients[head] + labels, 0.0f);
            for (int64_t b = 0; b < rows; ++b)
                for (int64_t k = 0; k < labels; ++k) bias_gradients[head][k] += scale[b] * of_head[b * labels + k];
        }
    }
    return 0;
} catch (const std::bad_alloc&) {
    return NO_MEMORY;
}

// feature_gradients[h] (B, D) = gradient W of each head; a head whose `adds` is set adds to that of an earlier one.
int rlpheads_batched_feature_gradients(const BatchedHeads* heads, const float* gradient, float* const* feature_gradients,
                                       const bool* adds, int threads) try {
    const int64_t rows = heads->num_rows, labels = heads->num_labels, widest = [&] {
        return *std::max_element(heads->num_features, heads->num_features + heads->num_heads);
    }();
    const int team = worthy_threads(*heads, threads);
    std::vector<float> packed(team * DOT_CHUNK * PANEL);
#pragma omp parallel for num_threads(team) schedule(static)
    for (int64_t first = 0; first < widest; first += PANEL)
        for (int64_t head = 0; head < heads->num_heads; ++head) {
            const int64_t depth = heads->num_features[head], columns = std::min<int64_t>(PANEL, depth - first);
            if (columns <= 0) continue;
            float* panel = packed.data() + omp_get_thread_num() * DOT_CHUNK * PANEL;
            for (int64_t k = 0; k < labels; k += DOT_CHUNK) {
                const int64_t here = std::min(DOT_CHUNK, labels - k);
                pack(here, depth, columns, heads->weights[head] + k * depth + first, panel);
                outer_product_panel(rows, here, {gradient + head * rows * labels + k, labels, 1}, panel,
                                    feature_gradients[head] + first, depth, columns, adds[head] || k > 0);
            }
        }
    return 0;
} catch (const std::bad_alloc&) {
    return NO_MEMORY;
}

}  // extern "C"
