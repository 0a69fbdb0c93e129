// Where the labels of many rows lie, and where what is found of each goes.

#pragma once

#include "row_terms.h"

extern "C" {

// Mirrored in rlpheads.kernels.head_rows.row_native.
struct ValueOutputs {
    float *cross_entropy, *regularizer, *bits, *margin, *lse;  // the second may be null
    bool* hit;
};

}  // extern "C"

namespace {

struct LabelsOfRows {
    const int64_t* index;       // (count, num_rows)
    const float* first_weight;  // (num_rows), null where rows have one label
    int64_t num_rows, count;

    RowLabels at(int64_t row) const {
        RowLabels found = {count, {index[row], 0}, {1.0f, 0.0f}, {1.0f, 0.0f}};
        if (count == 2) {
            found.index[1] = index[num_rows + row];
            found.present[1] = found.index[0] != found.index[1] ? 1.0f : 0.0f;
            found.weight[1] = (1.0f - first_weight[row]) * found.present[1];
            found.weight[0] = 1.0f - found.weight[1];
        }
        return found;
    }
};

inline void write_values(const Row& row, Kind kind, int64_t num_labels, int64_t number, const ValueOutputs& out) {
    const RowValues values = row.values(kind, std::log(static_cast<float>(num_labels)));
    out.cross_entropy[number] = values.cross_entropy;
    if (out.regularizer != nullptr) out.regularizer[number] = values.regularizer;
    out.bits[number] = values.bits;
    out.margin[number] = values.margin;
    out.lse[number] = values.lse;
    out.hit[number] = values.hit;
}

}  // namespace
