// Heads of few labels whose classes are split into ranges: the pass over a range, and what follows from those of all ranges.
//
// A task is a block of one head's rows. rlpheads.kernels.batched.range_native calls this file, and
// rlpheads.kernels.batched.written_rows holds the same in plain PyTorch.

#include "../head_rows/range_sums.h"
#include "batched_heads.h"

namespace {

constexpr int64_t ENTRIES_WORTH_A_THREAD = 1 << 16;

}  // namespace

extern "C" {

// Mirrored in rlpheads.kernels.batched.range_native: a range of each head's classes, and its rows' exponentials and moments
// (num_heads * B, count), the latter null but for the entropy.
struct BatchedRange {
    int64_t start, num_labels, kind;
    float *exps, *moments;
};

// `heads.num_labels` counts the range's classes. `range->exps` holds the logits where they are computed already. Returns 0,
// or what was wrong.
int rlpheads_batched_partials(const PackedHeads* given, const BatchedRange* range, bool has_logits, float* packed,
                              int threads) {
    const BatchedHeads heads(given);
    if (!has_good_values(heads, range->num_labels)) return BAD_VALUES;
    const int64_t block = std::min<int64_t>(MOST_ROWS, heads.num_rows);
    const int64_t blocks = block == 0 ? 0 : (heads.num_rows + block - 1) / block;
    const HeldClasses held = {range->start, heads.num_labels};
    const PackedSums layout = {heads.num_heads * heads.num_rows, heads.labels_a_row};
#pragma omp parallel for num_threads(worthy_threads(heads, threads)) schedule(static)
    for (int64_t task = 0; task < blocks * heads.num_heads; ++task) {
        const int64_t head = task / blocks, first = task % blocks * block, depth = heads.num_features[head];
        const int64_t rows = std::min(block, heads.num_rows - first), number = head * heads.num_rows + first;
        if (!has_logits)
            dot_product_matrix(rows, held.count, depth, heads.features[head] + first * depth, heads.weights[head],
                               heads.biases[head], range->exps + number * held.count, held.count);
        for (int64_t row = number; row < number + rows; ++row) {
            float* moments = range->moments == nullptr ? nullptr : range->moments + row * held.count;
            layout.write(sum_range(range->exps + row * held.count, held, labels_of(heads, row),
                                   static_cast<Kind>(range->kind), moments),
                         packed + row);
        }
    }
    return 0;
}

// `own`: what this range packed; `gathered`: what all of them did, (num_ranges, members, rows). `out->logits` is not read.
void rlpheads_batched_merge(const PackedHeads* given, const BatchedRange* range, const float* own, const float* gathered,
                            int64_t num_ranges, const BatchedOutputs* out, int threads) {
    const BatchedHeads heads(given);
    const HeldClasses held = {range->start, heads.num_labels};
    const Kind kind = static_cast<Kind>(range->kind);
    const PackedSums layout = {heads.num_heads * heads.num_rows, heads.labels_a_row};
    const int64_t worthy = 1 + layout.num_rows * held.count / ENTRIES_WORTH_A_THREAD;
#pragma omp parallel for num_threads(std::min<int64_t>(threads, worthy)) schedule(static)
    for (int64_t number = 0; number < layout.num_rows; ++number) {
        const RowLabels labels = labels_of(heads, number);
        const Row row(merge(layout, num_ranges, labels, gathered + number), labels, range->num_labels);
        write_values(row, kind, range->num_labels, number, out->values);
        const RowSums part = layout.read(own + number);
        const auto write = [&](const Coefficients& factors, const float* moments, float* gradient) {
            if (gradient == nullptr) return;
            write_gradient(of_range(factors, part.shift - row.shift(), part.sum), labels, held,
                           range->exps + number * held.count, moments, gradient + number * held.count, held.count);
        };
        const float* moments = range->moments == nullptr ? nullptr : range->moments + number * held.count;
        write(row.regularizer_gradient(kind), moments, out->feature_gradient);
        write(row.cross_entropy(), nullptr, out->class_gradient);
    }
}

}  // extern "C"
