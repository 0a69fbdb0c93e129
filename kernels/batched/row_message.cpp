// The message in which ranks tell one another of their rows: features, labels, weights, padding, as bytes behind one another.
//
// rlpheads.kernels.batched.message_native calls this file, and rlpheads.kernels.batched.row_message holds the layout and the
// same in plain PyTorch.

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace {

constexpr int64_t BYTES_WORTH_A_THREAD = 1 << 20;

}  // namespace

extern "C" {

// Mirrored in rlpheads.kernels.batched.message_native. A rank has B rows, and its message `num_bytes` bytes. In it block i
// lies at `offsets[i]`, of `sizes[i]` bytes, and at `labels_offset` the labels (B, all sets' draws), int32.
struct RowMessage {
    const int64_t *offsets, *sizes, *draws;
    int64_t num_blocks, num_sets, num_rows, num_bytes, labels_offset;
};

// A block that is null is filled with ones. `labels`: of each set (draws, B).
void rlpheads_pack_rows(const RowMessage* message, const char* const* blocks, const int64_t* const* labels, char* packed,
                        int threads) {
    const int64_t worthy = 1 + message->num_bytes / BYTES_WORTH_A_THREAD;
#pragma omp parallel for num_threads(std::min<int64_t>(threads, worthy)) schedule(dynamic)
    for (int64_t i = 0; i < message->num_blocks; ++i) {
        char* const place = packed + message->offsets[i];
        if (blocks[i] == nullptr)
            std::memset(place, 1, message->sizes[i]);
        else
            std::memcpy(place, blocks[i], message->sizes[i]);
    }
    int32_t* place = reinterpret_cast<int32_t*>(packed + message->labels_offset);
    for (int64_t row = 0; row < message->num_rows; ++row)
        for (int64_t s = 0; s < message->num_sets; ++s)
            for (int64_t draw = 0; draw < message->draws[s]; ++draw)
                *place++ = static_cast<int32_t>(labels[s][draw * message->num_rows + row]);
}

// `blocks`: of all ranks' rows. Block i is written `copies[i]` times, behind one another; so are the labels of each set,
// its draws one after another, to `labels`.
void rlpheads_unpack_rows(const RowMessage* message, const char* gathered, int64_t num_ranks, char* const* blocks,
                          const int64_t* copies, const int64_t* set_copies, int64_t* labels, int threads) {
    const int64_t worthy = 1 + num_ranks * message->num_bytes / BYTES_WORTH_A_THREAD;
#pragma omp parallel for collapse(2) num_threads(std::min<int64_t>(threads, worthy)) schedule(dynamic)
    for (int64_t i = 0; i < message->num_blocks; ++i)
        for (int64_t rank = 0; rank < num_ranks; ++rank) {
            const int64_t size = message->sizes[i];
            const char* const found = gathered + rank * message->num_bytes + message->offsets[i];
            for (int64_t copy = 0; copy < copies[i]; ++copy)
                std::memcpy(blocks[i] + (copy * num_ranks + rank) * size, found, size);
        }
    int64_t stride = 0, first = 0;
    for (int64_t s = 0; s < message->num_sets; ++s) stride += message->draws[s];
    for (int64_t s = 0; s < message->num_sets; first += message->draws[s++])
        for (int64_t copy = 0; copy < set_copies[s]; ++copy)
            for (int64_t draw = 0; draw < message->draws[s]; ++draw)
                for (int64_t rank = 0; rank < num_ranks; ++rank) {
                    const char* const bytes = gathered + rank * message->num_bytes + message->labels_offset;
                    for (int64_t row = 0; row < message->num_rows; ++row) {
                        int32_t label;  // messages of other ranks need not begin at a multiple of 4 bytes
                        std::memcpy(&label, bytes + 4 * (row * stride + first + draw), 4);
                        *labels++ = label;
                    }
                }
}

}  // extern "C"
