// Mixup and CutMix of neighbouring rows of a batch, in place: one pass over the pixels that change.

#include <algorithm>
#include <cstdint>

#include <omp.h>

namespace rlpheads {

// How a row is mixed: its own sample has weight 0 where it is covered, and `weight` elsewhere. Covered is the box, or what lies
// around it.
struct RowMix {
    float weight;
    int64_t top, left, height, width, covers_around;
};

// A row's own weights of the numbers of a line: of those through its box, and of the others.
struct LineWeights {
    float* through;
    float outside;
    const RowMix* mix;
    int64_t first, last;  // the numbers that change in a line through the box

    LineWeights(float* buffer, const RowMix& row, int64_t length, int64_t inner)
        : through(buffer), outside(row.covers_around ? 0 : row.weight), mix(&row), first(length), last(0) {
        const int64_t left = row.left * inner, right = (row.left + row.width) * inner;
        for (int64_t at = 0; at < length; ++at) {
            const bool in_box = at >= left && at < right;
            through[at] = in_box == static_cast<bool>(row.covers_around) ? row.weight : 0;
            if (through[at] != 1) {
                first = std::min(first, at);
                last = at + 1;
            }
        }
    }

    bool passes(int64_t line) const { return line >= mix->top && line < mix->top + mix->height; }
};

// Exact at 0 and 1, as torch.lerp.
inline float between(float other, float own, float weight) {
    return weight < 0.5f ? other + weight * (own - other) : own - (own - other) * (1 - weight);
}

void mix_line(float* one, float* two, const LineWeights (&weights)[2], int64_t line, int64_t length) {
    const bool passes[2] = {weights[0].passes(line), weights[1].passes(line)};
    int64_t first = length, last = 0;
    for (int row = 0; row < 2; ++row) {
        if (passes[row]) {
            first = std::min(first, weights[row].first);
            last = std::max(last, weights[row].last);
        } else if (weights[row].outside != 1) {
            first = 0;
            last = length;
        }
    }
    const float *of_one = weights[0].through, *of_two = weights[1].through;
    const float outside_one = weights[0].outside, outside_two = weights[1].outside;
    for (int64_t at = first; at < last; ++at) {
        const float left = one[at], right = two[at];
        one[at] = between(right, left, passes[0] ? of_one[at] : outside_one);
        two[at] = between(left, right, passes[1] ? of_two[at] : outside_two);
    }
}

}  // namespace rlpheads

using namespace rlpheads;

// images: num_pairs x 2 x planes x height x width x inner (planes of one channel, or one plane of pixels of `inner` channels).
// scratch: num_threads x 2 x width x inner numbers.
extern "C" void rlpheads_mix_pairs(
    float* images, const RowMix* rows, float* scratch, int64_t num_pairs, int64_t planes, int64_t height, int64_t width,
    int64_t inner, int64_t num_threads
) {
    const int64_t length = width * inner, image = planes * height * length;
#pragma omp parallel for schedule(dynamic, 1) num_threads(num_threads)
    for (int64_t pair = 0; pair < num_pairs; ++pair) {
        float* mine = scratch + omp_get_thread_num() * 2 * length;
        const LineWeights weights[2] = {
            {mine, rows[2 * pair], length, inner}, {mine + length, rows[2 * pair + 1], length, inner}
        };
        float *one = images + 2 * pair * image, *two = one + image;
        for (int64_t line = 0; line < planes * height; ++line)
            mix_line(one + line * length, two + line * length, weights, line % height, length);
    }
}
