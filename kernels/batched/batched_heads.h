// The arguments of the calls for heads of few labels, and what the passes over whole heads and over ranges of classes share.

#pragma once

#include "../head_rows/row_outputs.h"
#include "batched_products.h"

#include <new>
#include <omp.h>
#include <vector>

extern "C" {

// Sizes and places, in 8 bytes each: what rlpheads.kernels.batched.native_arguments packs, and `BatchedHeads` reads.
typedef int64_t PackedHeads;

// Of all heads' rows, packed there, too. Gradients (num_heads * B, K) are null where they are not wanted; products W X^T of
// each head (num_heads, K, B), without bias, are null where they are to be computed.
struct BatchedOutputs {
    ValueOutputs values;
    float *class_gradient, *feature_gradient;
    const float* products;
};

}  // extern "C"

namespace {

// Matrices are contiguous; `biases` may hold nulls, as all that a call does not read.
struct BatchedHeads {
    int64_t num_heads, num_rows, num_labels, labels_a_row;
    const int64_t* labels;                                          // (num_labels_a_row, num_heads * B)
    const float* first_weight;                                      // (num_heads * B), null where rows have one label
    const float *const *features, *const *weights, *const *biases;  // of each head: (B, D), (K, D), (K)
    const int64_t* num_features;                                    // D of each head

    explicit BatchedHeads(const PackedHeads* packed)
        : num_heads(packed[0]), num_rows(packed[1]), num_labels(packed[2]), labels_a_row(packed[3]),
          labels(reinterpret_cast<const int64_t*>(packed[4])), first_weight(reinterpret_cast<const float*>(packed[5])) {
        const PackedHeads* const of_heads = packed + 6;
        features = reinterpret_cast<const float* const*>(of_heads);
        weights = features + num_heads;
        biases = weights + num_heads;
        num_features = of_heads + 3 * num_heads;
    }
};

constexpr int64_t MOST_ROWS = 36;               // rows of a task at most, whole blocks of dot products
constexpr int64_t WORTH_A_THREAD = 1 << 18;     // multiplications: 5 microseconds

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
    return LabelsOfRows{heads.labels, heads.first_weight, heads.num_heads * heads.num_rows, heads.labels_a_row}.at(row);
}

}  // namespace
