// Heads of few labels whose classes are split into ranges: the pass over a range, and what follows from those of all ranges.
//
// A task is a block of one head's rows. rlpheads.kernels.batched.range_native calls this file, and
// rlpheads.kernels.batched.written_rows holds the same in plain PyTorch.

#include "batched_heads.h"

namespace {

constexpr int64_t ENTRIES_WORTH_A_THREAD = 1 << 16;

// Where the rows' statistics over a range lie: a row of numbers for each member of Partials, those of all heads' rows.
struct PackedSums {
    int64_t num_rows, num_labels_a_row;

    int64_t count() const { return num_labels_a_row + 6; }

    void write(const RowSums& sums, float* packed) const {
        const auto put = [&](int64_t member, float value) { packed[member * num_rows] = value; };
        put(0, sums.shift), put(1, sums.sum), put(2, sums.moment), put(3, static_cast<float>(sums.logits));
        for (int64_t l = 0; l < num_labels_a_row; ++l) put(4 + l, sums.label_logit[l]);
        put(count() - 2, sums.before), put(count() - 1, sums.after);
    }

    RowSums read(const float* packed) const {
        const auto get = [&](int64_t member) { return packed[member * num_rows]; };
        RowSums sums;
        sums.shift = get(0), sums.sum = get(1), sums.moment = get(2), sums.logits = get(3);
        for (int64_t l = 0; l < num_labels_a_row; ++l) sums.label_logit[l] = get(4 + l);
        sums.before = get(count() - 2), sums.after = get(count() - 1);
        return sums;
    }
};

// Statistics over all ranges, in the order of their classes. Ranges that leave a second label out of the maxima may be
// among them: it joins here.
RowSums merge(const PackedSums& layout, int64_t num_ranges, const RowLabels& labels, const float* packed) {
    const int64_t range_size = layout.count() * layout.num_rows;
    RowSums merged;
    for (int64_t n = 0; n < num_ranges; ++n) {
        const RowSums part = layout.read(packed + n * range_size);
        if (part.sum > 0.0f) merged.shift = larger(part.shift, merged.shift);
        merged.before = larger(part.before, merged.before);
        merged.after = larger(part.after, merged.after);
        merged.logits += part.logits;
        for (int l = 0; l < labels.count; ++l)
            if (part.label_logit[l] != -INF) merged.label_logit[l] = part.label_logit[l];  // one range has it, maybe as NaN
    }
    for (int64_t n = 0; n < num_ranges; ++n) {
        const RowSums part = layout.read(packed + n * range_size);
        const float offset = part.shift - merged.shift, scale = part.sum > 0.0f ? std::exp(offset) : 0.0f;
        merged.sum += scale * part.sum;
        if (part.sum > 0.0f) merged.moment += scale * (part.moment + offset * part.sum);
    }
    if (labels.count == 2 && labels.index[1] < labels.index[0])
        merged.before = larger(merged.label_logit[1], merged.before);
    if (labels.count == 2 && labels.index[1] > labels.index[0])
        merged.after = larger(merged.label_logit[1], merged.after);
    return merged;
}

}  // namespace

extern "C" {

// Mirrored in rlpheads.kernels.batched.range_native: a range of each head's classes, and its rows' exponentials and moments
// (num_heads * B, count), the latter null but for the entropy.
struct BatchedRange {
    int64_t start, num_labels, kind;
    float *exps, *moments;
};

// `heads->num_labels` counts the range's classes. `range->exps` holds the logits where they are computed already. Returns 0,
// or what was wrong.
int rlpheads_batched_partials(const BatchedHeads* heads, const BatchedRange* range, bool has_logits, float* packed,
                              int threads) {
    if (!has_good_values(*heads, range->num_labels)) return BAD_VALUES;
    const int64_t block = std::min<int64_t>(MOST_ROWS, heads->num_rows);
    const int64_t blocks = block == 0 ? 0 : (heads->num_rows + block - 1) / block;
    const HeldClasses held = {range->start, heads->num_labels};
    const PackedSums layout = {heads->num_heads * heads->num_rows, heads->labels_a_row};
#pragma omp parallel for num_threads(worthy_threads(*heads, threads)) schedule(static)
    for (int64_t task = 0; task < blocks * heads->num_heads; ++task) {
        const int64_t head = task / blocks, first = task % blocks * block, depth = heads->num_features[head];
        const int64_t rows = std::min(block, heads->num_rows - first), number = head * heads->num_rows + first;
        if (!has_logits)
            dot_product_matrix(rows, held.count, depth, heads->features[head] + first * depth, heads->weights[head],
                               heads->biases[head], range->exps + number * held.count, held.count);
        for (int64_t row = number; row < number + rows; ++row) {
            float* moments = range->moments == nullptr ? nullptr : range->moments + row * held.count;
            layout.write(sum_range(range->exps + row * held.count, held, labels_of(*heads, row),
                                   static_cast<Kind>(range->kind), moments),
                         packed + row);
        }
    }
    return 0;
}

// `own`: what this range packed; `gathered`: what all of them did, (num_ranges, members, rows). `out->logits` is not read.
void rlpheads_batched_merge(const BatchedHeads* heads, const BatchedRange* range, const float* own, const float* gathered,
                            int64_t num_ranges, const BatchedOutputs* out, int threads) {
    const HeldClasses held = {range->start, heads->num_labels};
    const Kind kind = static_cast<Kind>(range->kind);
    const PackedSums layout = {heads->num_heads * heads->num_rows, heads->labels_a_row};
    const int64_t worthy = 1 + layout.num_rows * held.count / ENTRIES_WORTH_A_THREAD;
#pragma omp parallel for num_threads(std::min<int64_t>(threads, worthy)) schedule(static)
    for (int64_t number = 0; number < layout.num_rows; ++number) {
        const RowLabels labels = labels_of(*heads, number);
        const Row row(merge(layout, num_ranges, labels, gathered + number), labels, range->num_labels);
        write_values(row, kind, range->num_labels, number, *out);
        const RowSums part = layout.read(own + number);
        const auto write = [&](const Coefficients& factors, const float* moments, float* gradient) {
            if (gradient == nullptr) return;
            write_gradient(row.of_range(factors, part.shift, part.sum), labels, held, range->exps + number * held.count,
                           moments, gradient + number * held.count, held.count);
        };
        const float* moments = range->moments == nullptr ? nullptr : range->moments + number * held.count;
        write(row.regularizer_gradient(kind), moments, out->feature_gradient);
        write(row.cross_entropy(), nullptr, out->class_gradient);
    }
}

}  // extern "C"
