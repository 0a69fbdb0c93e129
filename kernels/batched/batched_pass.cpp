// Heads of few labels: all their logits written out, in one call forward and one for each kind of gradient.
//
// A task is a block of one head's rows, or a panel of one head's features; what it writes does not depend on the number of
// threads. rlpheads.kernels.native builds this file, rlpheads.kernels.batched.batched_native calls it, and
// rlpheads.kernels.batched.written_rows holds the same in plain PyTorch.

#include "batched_heads.h"

#include <memory>

namespace {

constexpr int64_t CLASSES_OF_PART = 16;  // a cache line of a row's gradient

// A row as it lies in memory: `width` logits from `z` on, and as many numbers of scratch memory, whole vectors where the row is
// short. `may_exceed`: what is written behind the row is overwritten, as this thread writes the next rows afterwards.
struct RowInMemory {
    float *z, *scratch;
    int64_t width;
    bool is_short, may_exceed;
};

void write_row(const BatchedHeads& heads, const BatchedOutputs& out, Kind kind, int64_t number, const RowInMemory& row) {
    const RowLabels labels = labels_of(heads, number);
    const HeldClasses held = {0, heads.num_labels};
    float* moments = kind == ENTROPY ? row.scratch : nullptr;
    const RowSums sums = row.is_short ? sum_short_row(row.z, held.count, row.width, labels, kind, moments)
                                      : sum_range(row.z, held, labels, kind, moments);
    const Row terms(sums, labels, held.count);
    write_values(terms, kind, held.count, number, out.values);
    const auto write = [&](const Coefficients& factors, const float* own_moments, float* gradient) {
        if (gradient != nullptr)
            write_gradient(factors, labels, held, row.z, own_moments, gradient + number * held.count,
                           row.may_exceed ? row.width : held.count);
    };
    write(terms.regularizer_gradient(kind), moments, out.feature_gradient);
    write(terms.cross_entropy(), nullptr, out.class_gradient);
}

inline float sum_of(int64_t size, const float* values) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < size; ++i) sum += values[i];
    return sum;
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
int rlpheads_batched_forward(const PackedHeads* given, const BatchedOutputs* out, int kind, int threads) try {
    const BatchedHeads heads(given);
    if (!has_good_values(heads, heads.num_labels)) return BAD_VALUES;
    const int64_t blocks = (heads.num_rows + MOST_ROWS - 1) / MOST_ROWS;
    const int64_t block = blocks == 0 ? 0 : (heads.num_rows + blocks - 1) / blocks;  // as even as can be
    const int team = worthy_threads(heads, threads);
    const bool has_products = out->products != nullptr;
    const int64_t labels = heads.num_labels, stride = (labels + LANES - 1) / LANES * LANES;
    const int64_t width = has_products ? labels : stride;
    const std::unique_ptr<float[]> spare(new float[team * (block + 1) * stride]);
#pragma omp parallel for num_threads(team) schedule(static)
    for (int64_t task = 0; task < blocks * heads.num_heads; ++task) {
        const int64_t head = task / blocks, first = task % blocks * block, depth = heads.num_features[head];
        const int64_t rows = std::min(block, heads.num_rows - first), number = head * heads.num_rows + first;
        float* scratch = spare.get() + omp_get_thread_num() * (block + 1) * stride;
        float* z = scratch + stride;
        const float* bias = heads.biases[head];
        if (has_products)
            transpose(labels, rows, out->products + head * labels * heads.num_rows + first, heads.num_rows, z, stride,
                      [bias](int64_t k, float product) { return product + (bias == nullptr ? 0.0f : bias[k]); });
        else
            dot_product_matrix(rows, labels, depth, heads.features[head] + first * depth, heads.weights[head], bias, z,
                               stride);
        for (int64_t b = 0; b < rows; ++b)
            write_row(heads, *out, static_cast<Kind>(kind), number + b,
                      {z + b * stride, scratch, width, !has_products, (rows - b) * labels >= width});
    }
    return 0;
} catch (const std::bad_alloc&) {
    return NO_MEMORY;
}

// weight_gradients[h] (K, D) = (upstream * gradient)^T X and bias_gradients[h] (K) = its sums; nulls are left out.
// `gradients`: the former of all heads, then the latter.
int rlpheads_batched_class_gradients(const PackedHeads* given, const float* gradient, const float* upstream,
                                     float* const* gradients, int threads) try {
    const BatchedHeads heads(given);
    const int64_t rows = heads.num_rows, labels = heads.num_labels;
    float* const* const weight_gradients = gradients;
    float* const* const bias_gradients = gradients + heads.num_heads;
    const int64_t parts = (labels + CLASSES_OF_PART - 1) / CLASSES_OF_PART;
    const Panels panels(heads);
    const int team = worthy_threads(heads, threads);
    const std::unique_ptr<float[]> scaled(new float[heads.num_heads * labels * rows]);  // of each head (K, rows)
    const std::unique_ptr<float[]> packed(new float[team * rows * PANEL]);
#pragma omp parallel num_threads(team)
    {
#pragma omp for schedule(static)
        for (int64_t task = 0; task < parts * heads.num_heads; ++task) {
            const int64_t head = task / parts, first = task % parts * CLASSES_OF_PART;
            const int64_t classes = std::min(CLASSES_OF_PART, labels - first), row = head * rows;
            float* own = scaled.get() + (head * labels + first) * rows;
            const float* factors = upstream + row;
            transpose(rows, classes, gradient + row * labels + first, labels, own, rows,
                      [=](int64_t b, float number) { return number * factors[b]; });
            if (bias_gradients[head] != nullptr)
                for (int64_t k = 0; k < classes; ++k) bias_gradients[head][first + k] = sum_of(rows, own + k * rows);
        }
        float* const own_packed = packed.get() + omp_get_thread_num() * rows * PANEL;
#pragma omp for schedule(static)
        for (int64_t task = 0; task < panels.count(); ++task) {
            const int64_t head = panels.head_of(task), first = (task - panels.first_panel[head]) * PANEL;
            const int64_t depth = heads.num_features[head], columns = std::min<int64_t>(PANEL, depth - first);
            if (weight_gradients[head] == nullptr) continue;
            const float* x = heads.features[head] + first;
            const bool is_read_in_place = columns == PANEL && labels <= 2 * BLOCK;  // twice at most
            if (!is_read_in_place) pack(rows, depth, columns, x, own_packed);
            const Panel panel = is_read_in_place ? Panel{x, depth, columns} : Panel{own_packed, PANEL, columns};
            outer_product_panel(labels, rows, {scaled.get() + head * labels * rows, rows, 1}, panel, nullptr,
                                {weight_gradients[head] + first, depth, false});
        }
    }
    return 0;
} catch (const std::bad_alloc&) {
    return NO_MEMORY;
}

// feature_gradients[h] (B, D) = upstream * gradient W of each head; a head whose `adds` is set adds to that of an earlier one.
int rlpheads_batched_feature_gradients(const PackedHeads* given, const float* gradient, const float* upstream,
                                       float* const* feature_gradients, const bool* adds, int threads) try {
    const BatchedHeads heads(given);
    const int64_t rows = heads.num_rows, labels = heads.num_labels, widest = [&] {
        return *std::max_element(heads.num_features, heads.num_features + heads.num_heads);
    }();
    const int team = worthy_threads(heads, threads);
    std::vector<float> packed(team * DOT_CHUNK * PANEL);
#pragma omp parallel for num_threads(team) schedule(static)
    for (int64_t first = 0; first < widest; first += PANEL)
        for (int64_t head = 0; head < heads.num_heads; ++head) {
            const int64_t depth = heads.num_features[head], columns = std::min<int64_t>(PANEL, depth - first);
            if (columns <= 0) continue;
            float* panel = packed.data() + omp_get_thread_num() * DOT_CHUNK * PANEL;
            int64_t k = 0;
            do {  // once where a range of classes is empty, too: its gradient is 0
                const int64_t here = std::min(DOT_CHUNK, labels - k);
                pack(here, depth, columns, heads.weights[head] + k * depth + first, panel);
                outer_product_panel(rows, here, {gradient + head * rows * labels + k, labels, 1},
                                    {panel, PANEL, columns}, upstream + head * rows,
                                    {feature_gradients[head] + first, depth, adds[head] || k > 0});
                k += DOT_CHUNK;
            } while (k < labels);
        }
    return 0;
} catch (const std::bad_alloc&) {
    return NO_MEMORY;
}

}  // extern "C"
