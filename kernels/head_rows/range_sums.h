// Statistics of rows over ranges of the classes, as they travel, and merged.

#pragma once

#include "row_terms.h"

namespace {

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
inline RowSums merge(const PackedSums& layout, int64_t num_ranges, const RowLabels& labels, const float* packed) {
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
