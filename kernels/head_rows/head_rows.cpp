// What follows the pass over the classes, for the rows of all heads in one call each: values and coefficients of every term from
// what the ranges sent, dL/dz for the last stage, gradients of the features, and their sums.
//
// rlpheads.kernels.head_rows.row_native calls this file; head_rows and feature_gradients beside it hold the same in plain PyTorch.

#include "range_sums.h"
#include "row_outputs.h"

#include <algorithm>
#include <numeric>

namespace {

constexpr int64_t NUMBERS_WORTH_A_THREAD = 1 << 16, ROWS_WORTH_A_THREAD = 1 << 10;

inline int team_for(int64_t count, int64_t worth_a_thread, int threads) {
    return static_cast<int>(std::min<int64_t>(threads, 1 + count / worth_a_thread));
}

}  // namespace

extern "C" {

// Mirrored in rlpheads.kernels.head_rows.row_native, like all structures here. R: rows of all heads; L: labels of a row, 1 or 2.
struct GatheredPartials {
    const float* packed;  // (num_ranges, members, R)
    const int64_t* labels;
    const float* first_weight;
    int64_t num_ranges, num_rows, labels_a_row, num_labels, kind;
};

// dL/dz as multiples of exponentials and of their moments, (R), and at the labels, (L, R).
struct TermOutputs {
    float *exp, *labels, *moment;  // all null where there is no term; the last where it has none
};

struct RowOutputs {
    ValueOutputs values;
    float* shift;
    TermOutputs cross_entropy, regularizer;
};

void rlpheads_head_rows(const GatheredPartials* given, const RowOutputs* out, int threads) {
    const int64_t num_rows = given->num_rows;
    const Kind kind = static_cast<Kind>(given->kind);
    const PackedSums layout = {num_rows, given->labels_a_row};
    const LabelsOfRows labels = {given->labels, given->first_weight, num_rows, given->labels_a_row};
#pragma omp parallel for num_threads(team_for(num_rows, ROWS_WORTH_A_THREAD, threads)) schedule(static)
    for (int64_t number = 0; number < num_rows; ++number) {
        const RowLabels of_row = labels.at(number);
        const Row row(merge(layout, given->num_ranges, of_row, given->packed + number), of_row, given->num_labels);
        write_values(row, kind, given->num_labels, number, out->values);
        out->shift[number] = row.shift();
        const auto write = [&](const Coefficients& found, const TermOutputs& term) {
            if (term.exp == nullptr) return;
            term.exp[number] = found.exp;
            for (int64_t l = 0; l < of_row.count; ++l) term.labels[l * num_rows + number] = found.label[l];
            if (term.moment != nullptr) term.moment[number] = found.moment;
        };
        write(row.cross_entropy(), out->cross_entropy);
        write(row.regularizer_gradient(kind), out->regularizer);
    }
}

// Heads of B rows each, one behind the other.
struct RowsOfHeads {
    int64_t num_heads, num_rows, labels_a_row;
};

// dL/dz of a loss with these upstream gradients (R), which is `exp` times e^(z - shift) and `labels` at the labels. Of each head:
// `scales` (tiles, B), relative to the tiles' shifts (tiles, B), and `label_gradients` (L, B).
void rlpheads_logit_gradients(const RowsOfHeads* rows, const float* upstream, const float* shift, const float* exp,
                              const float* labels, const float* const* tile_shifts, const int64_t* num_tiles,
                              float* const* scales, float* const* label_gradients) {
    const int64_t num_rows = rows->num_rows, all_rows = rows->num_heads * num_rows;
    for (int64_t head = 0; head < rows->num_heads; ++head) {
        const int64_t first = head * num_rows;
        for (int64_t b = 0; b < num_rows; ++b) {
            const int64_t number = first + b;
            for (int64_t c = 0; c < num_tiles[head]; ++c) {
                const float of_tile = exp[number] * std::exp(tile_shifts[head][c * num_rows + b] - shift[number]);
                scales[head][c * num_rows + b] = upstream[number] * of_tile;
            }
            for (int64_t l = 0; l < rows->labels_a_row; ++l)
                label_gradients[head][l * num_rows + b] = upstream[number] * labels[l * all_rows + number];
        }
    }
}

// A term's coefficients of all heads' rows, what they are multiples of in a range, and which heads are wanted.
struct FeatureTerm {
    const float *exp, *labels, *moment;  // the last is null where the term has none
    const float *shift, *packed;         // of the merged rows (R), of the range (members, R)
    const int64_t *label_index, *numbers, *num_features;  // (L, R), and of each wanted head
    int64_t num_wanted, start, num_held;
    float uniform;
};

// Of each wanted head: sums (B, D) of the exponentials and of their moments with the weight, those of the weight (D), the weight
// (num_held, D), and the gradient (B, D), which is written.
struct FeatureSums {
    const float *const *exp_weights, *const *moment_weights, *const *weight_sums, *const *weights;
    float* const* gradients;
};

void rlpheads_feature_gradients(const RowsOfHeads* rows, const FeatureTerm* term, const FeatureSums* sums, int threads) {
    const int64_t num_rows = rows->num_rows, all_rows = rows->num_heads * num_rows;
    const PackedSums layout = {all_rows, rows->labels_a_row};
    const HeldClasses held = {term->start, term->num_held};
    const int64_t count = term->num_wanted * num_rows;
    const int64_t numbers = num_rows * std::accumulate(term->num_features, term->num_features + term->num_wanted, int64_t{0});
    const int team = team_for(numbers, NUMBERS_WORTH_A_THREAD, threads);
#pragma omp parallel for num_threads(team) schedule(static)
    for (int64_t task = 0; task < count; ++task) {
        const int64_t place = task / num_rows, b = task % num_rows, number = term->numbers[place] * num_rows + b;
        const int64_t depth = term->num_features[place];
        const RowSums part = layout.read(term->packed + number);
        Coefficients factors;
        factors.exp = term->exp[number];
        if (term->moment != nullptr) factors.moment = term->moment[number];
        factors = of_range(factors, part.shift - term->shift[number], part.sum);
        float* out = sums->gradients[place] + b * depth;
        const auto add = [out, depth](float factor, const float* values) {
#pragma omp simd
            for (int64_t d = 0; d < depth; ++d) out[d] += factor * values[d];
        };
        const float* exp_weight = sums->exp_weights[place] + b * depth;
#pragma omp simd
        for (int64_t d = 0; d < depth; ++d) out[d] = factors.exp * exp_weight[d];
        if (term->moment != nullptr) add(factors.moment, sums->moment_weights[place] + b * depth);
        if (term->uniform != 0.0f) add(term->uniform, sums->weight_sums[place]);
        for (int64_t l = 0; l < rows->labels_a_row; ++l) {
            const int64_t own = held.place(term->label_index[l * all_rows + number]);
            if (own >= 0) add(term->labels[l * all_rows + number], sums->weights[place] + own * depth);
        }
    }
}

// Of each part a sum (num_rows, D) becomes upstream (num_rows) times gradient (num_rows, D), or is added to.
void rlpheads_sum_feature_gradients(int64_t num_parts, int64_t num_rows, const float* const* upstreams,
                                    const float* const* gradients, const int64_t* num_features, const bool* adds,
                                    float* const* sums, int threads) {
    const int64_t numbers = num_rows * std::accumulate(num_features, num_features + num_parts, int64_t{0});
#pragma omp parallel for num_threads(team_for(numbers, NUMBERS_WORTH_A_THREAD, threads)) schedule(static)
    for (int64_t b = 0; b < num_rows; ++b)
        for (int64_t i = 0; i < num_parts; ++i) {
            const int64_t depth = num_features[i];
            const float factor = upstreams[i][b], *gradient = gradients[i] + b * depth;
            float* sum = sums[i] + b * depth;
#pragma omp simd
            for (int64_t d = 0; d < depth; ++d) sum[d] = factor * gradient[d] + (adds[i] ? sum[d] : 0.0f);
        }
}

}  // extern "C"
