// 2 x 2 max-pooling with stride 2 of channels-last bf16 feature maps [n][h][w][channels]. An odd last row or column is
// ignored. Channel counts are multiples of 16.

#include <limits>

#include "bf16.h"

typedef uint8_t Bytes __attribute__((vector_size(16)));

namespace {

struct Window {
    long n, h, w, channels;
    long count() const { return n * (h / 2) * (w / 2); }
    // Where the window's first pixel begins.
    long begin(long window) const {
        const long column = window % (w / 2), row = window / (w / 2) % (h / 2), image = window / (w / 2) / (h / 2);
        return ((image * h + 2 * row) * w + 2 * column) * channels;
    }
    // How far its other pixels are from there, row by row.
    long step(long place) const { return (place / 2 * w + place % 2) * channels; }
};

}  // namespace

extern "C" {

// out [n][h / 2][w / 2][channels] and which of the four pixels it was taken from, the first of equal ones.
void pool(const bf16 *x, bf16 *out, uint8_t *which, long n, long h, long w, long channels, long threads) {
    const Window window{n, h, w, channels};
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long k = 0; k < window.count(); ++k) {
        const bf16 *from = x + window.begin(k);
        for (long c = 0; c < channels; c += LANES) {
            Lanes most = load(from + c);
            Words place = {};
            for (uint32_t other = 1; other < 4; ++other) {
                const Lanes value = load(from + c + window.step(other));
                const auto larger = (value > most) | (value != value);  // not a number comes through
                most = larger ? value : most;
                place = larger ? Words{} + other : place;
            }
            const Halves halves = __builtin_convertvector((Words)most >> 16, Halves);
            const Bytes bytes = __builtin_convertvector(place, Bytes);
            std::memcpy(out + k * channels + c, &halves, sizeof halves);
            std::memcpy(which + k * channels + c, &bytes, sizeof bytes);
        }
    }
}

// The gradient of x from that of the output.
void pool_backward(const bf16 *gradient, const uint8_t *which, bf16 *of_x, long n, long h, long w, long channels, long threads) {
    const Window window{n, h, w, channels};
    if (h % 2 || w % 2) std::memset(of_x, 0, n * h * w * channels * sizeof(bf16));
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long k = 0; k < window.count(); ++k) {
        bf16 *to = of_x + window.begin(k);
        for (long c = 0; c < channels; c += LANES) {
            Halves value;
            Bytes bytes;
            std::memcpy(&value, gradient + k * channels + c, sizeof value);
            std::memcpy(&bytes, which + k * channels + c, sizeof bytes);
            const Halves place = __builtin_convertvector(bytes, Halves);
            for (uint16_t other = 0; other < 4; ++other) {
                const Halves part = place == other ? value : Halves{};
                std::memcpy(to + c + window.step(other), &part, sizeof part);
            }
        }
    }
}
}
