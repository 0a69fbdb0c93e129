// The arguments of the calls for heads of few labels, and what the passes over whole heads and over ranges of classes share.

#pragma once

#include "batched_products.h"
#include "row_terms.h"

#include <new>
#include <omp.h>
#include <vector>

extern "C" {

// Mirrored in rlpheads.kernels.batched.batched_native. Matrices are contiguous; `biases` may hold nulls.
struct BatchedHeads {
    const float *const *features, *const *weights, *const *biases;  // of each head: (B, D), (K, D), (K)
    const int64_t* num_features;                                    // D of each head
    const int64_t* labels;                                          // (num_labels_a_row, num_heads * B)
    const float* first_weight;                                      // (num_heads * B), null where rows have one label
    int64_t num_heads, num_rows, num_labels, labels_a_row;
};

// Of all heads' rows. Gradients (num_heads * B, K) are null where they are not wanted; logits (likewise) are null where they
// are to be computed, else given, and overwritten.
struct BatchedOutputs {
    float *cross_entropy, *regularizer, *bits, *margin, *lse;
    bool* hit;
    float *class_gradient, *feature_gradient, *logits;
};

}  // extern "C"

namespace {

constexpr int64_t MOST_ROWS = 36;               // rows of a task at most, whole blocks of dot products
constexpr int64_t WORTH_A_THREAD = 1 << 20;     // multiplications

constexpr int NO_MEMORY = 1, BAD_VALUES = 2;

// Whether all labels are classes and all weights lie in [0, 1].
inline bool has_good_values(const BatchedHeads& heads, int64_t num_labels) {
    const int64_t rows = heads.num_heads * heads.num_rows;
    bool are_good = true;
    for (int64_t i = 0; i < heads.labels_a_row * rows; ++i)
        are_good &= heads.labels[i] >= 0 && heads.labels[i] < num_labels;
    for (int64_t i = 0; heads.first_weight != nullptr && i < rows; ++i)
        are_good &= heads.first_weight[i] >= 0.0f && heads.first_weight[i] <= 1.0f;
    return are_good;
}

inline int worthy_threads(const BatchedHeads& heads, int threads) {
    double products = 0.0;
    for (int64_t h = 0; h < heads.num_heads; ++h)
        products += static_cast<double>(heads.num_rows) * heads.num_labels * heads.num_features[h];
    return static_cast<int>(std::min<double>(threads, 1.0 + products / WORTH_A_THREAD));
}

inline RowLabels labels_of(const BatchedHeads& heads, int64_t row) {
    const int64_t all_rows = heads.num_heads * heads.num_rows;
    RowLabels found = {heads.labels_a_row, {heads.labels[row], 0}, {1.0f, 0.0f}, {1.0f, 0.0f}};
    if (found.count == 2) {
        found.index[1] = heads.labels[all_rows + row];
        found.present[1] = found.index[0] != found.index[1] ? 1.0f : 0.0f;
        found.weight[1] = (1.0f - heads.first_weight[row]) * found.present[1];
        found.weight[0] = 1.0f - found.weight[1];
    }
    return found;
}

inline void write_values(const Row& row, Kind kind, int64_t num_labels, int64_t number, const BatchedOutputs& out) {
    const RowValues values = row.values(kind, std::log(static_cast<float>(num_labels)));
    out.cross_entropy[number] = values.cross_entropy;
    if (out.regularizer != nullptr) out.regularizer[number] = values.regularizer;
    out.bits[number] = values.bits;
    out.margin[number] = values.margin;
    out.lse[number] = values.lse;
    out.hit[number] = values.hit;
}

}  // namespace
