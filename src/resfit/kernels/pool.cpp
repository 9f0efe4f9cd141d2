// 2 x 2 max-pooling with stride 2 of channels-last feature maps [n][h][w][channels]. An odd last row or column is
// ignored. Channel counts are multiples of LANES.

#include <limits>

#include "numbers.h"

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
void pool(const Number *x, Number *out, uint8_t *which, long n, long h, long w, long channels, long threads) {
    const Window window{n, h, w, channels};
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long k = 0; k < window.count(); ++k) {
        const Number *from = x + window.begin(k);
        for (long c = 0; c < channels; c += LANES) {
            Lanes most = load(from + c);
            Words place = {};
            for (uint32_t other = 1; other < 4; ++other) {
                const Lanes value = load(from + c + window.step(other));
                const auto larger = (value > most) | (value != value);  // not a number comes through
                most = larger ? value : most;
                place = larger ? Words{} + other : place;
            }
            const Bits bits = exactly(most);
            const Bytes bytes = __builtin_convertvector(place, Bytes);
            std::memcpy(out + k * channels + c, &bits, sizeof bits);
            std::memcpy(which + k * channels + c, &bytes, sizeof bytes);
        }
    }
}

// The gradient of x from that of the output.
void pool_backward(const Number *gradient, const uint8_t *which, Number *of_x, long n, long h, long w, long channels, long threads) {
    const Window window{n, h, w, channels};
    if (h % 2 || w % 2) std::memset(of_x, 0, n * h * w * channels * sizeof(Number));
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long k = 0; k < window.count(); ++k) {
        Number *to = of_x + window.begin(k);
        for (long c = 0; c < channels; c += LANES) {
            Bits value;
            Bytes bytes;
            std::memcpy(&value, gradient + k * channels + c, sizeof value);
            std::memcpy(&bytes, which + k * channels + c, sizeof bytes);
            const Bits place = __builtin_convertvector(bytes, Bits);
            Bits other = {};
            for (long step = 0; step < 4; ++step, other += 1) {
                const Bits part = place == other ? value : Bits{};
                std::memcpy(to + c + window.step(step), &part, sizeof part);
            }
        }
    }
}
}
