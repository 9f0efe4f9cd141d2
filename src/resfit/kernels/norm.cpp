// Batch normalization fused with the following addition and activation, for channels-last feature maps. A map is
// read once for its statistics and once to be normalized, and as often in backward. Arithmetic is fp32. Channel counts
// are multiples of LANES. Results do not depend on `threads`.

#include <algorithm>
#include <iterator>

#include "activation.h"

namespace {

constexpr long BLOCK = 4;     // pixels summed at a time: few, so that memory is read nearly in order
constexpr long PART = 1024;   // pixels that are summed in fp32; parts are added in double

// A channel's numbers of each kind that are the same for all pixels.
struct Constants {
    Lanes pivot, scale, shift;
};

// Adds the pixels from `first` to `end`, of G times LANES channels, to two sums a channel, float [2][channels].
template <long G, typename Constant, typename Add>
void add_pixels(long first, long end, long channel, long channels, float *sums, Constant constant, Add add) {
    Constants of[G];
    Lanes one[G], other[G];
    for (long i = 0; i < G; ++i) {
        const long at = channel + i * LANES;
        of[i] = constant(at), one[i] = load(sums + at), other[i] = load(sums + channels + at);
    }
    for (long pixel = first; pixel < end; ++pixel) add(pixel * channels + channel, of, one, other);
    for (long i = 0; i < G; ++i) {
        const long at = channel + i * LANES;
        store(sums + at, one[i]), store(sums + channels + at, other[i]);
    }
}

// Two sums over all pixels, double [2][channels]. add(at, of, one, other) adds some times LANES channels' numbers, of which
// the first is the at-th of all, to both; `of` has constant(channel) of each LANES.
template <typename Constant, typename Add>
void add_up(long pixels, long channels, double *sums, long threads, Constant constant, Add add) {
    const long parts = (pixels + PART - 1) / PART;
    const auto found = buffer<float>(parts * 2 * channels);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long part = 0; part < parts; ++part) {
        float *of_part = &found[part * 2 * channels];
        std::memset(of_part, 0, 2 * channels * sizeof(float));
        const long end = std::min(pixels, (part + 1) * PART);
        for (long first = part * PART; first < end; first += BLOCK) {
            const long next = std::min(end, first + BLOCK);
            in_groups<2>(channels, [&](long channel, auto g) { add_pixels<g>(first, next, channel, channels, of_part, constant, add); });
        }
    }
    std::fill_n(sums, 2 * channels, 0.0);
    for (long part = 0; part < parts; ++part)
        for (long c = 0; c < 2 * channels; ++c) sums[c] += found[part * 2 * channels + c];
}

template <Activation A, bool ADD>
void normalize(const Number *x, const Number *added, const float *scale, const float *shift, Number *out, long pixels, long channels, long threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long pixel = 0; pixel < pixels; ++pixel)
        in_groups<4>(channels, [=](long channel, auto g) {
            const long first = pixel * channels + channel;
            Lanes z[g];
            for (long i = 0; i < g; ++i) {
                const long at = first + i * LANES, c = channel + i * LANES;
                z[i] = load(x + at) * load(scale + c) + load(shift + c);
                if (ADD) z[i] += load(added + at);
            }
            activate<A>(z);
            for (long i = 0; i < g; ++i) store(out + first + i * LANES, z[i]);
        });
}

// The gradient of z = x * scale + shift (+ added), of which the activation was taken; its sum and that of its products
// with x, less the channel's first. `second` is added to the gradient first. It and `out` may be missing.
template <Activation A, bool ADD, bool SECOND>
void gradient_of_sum(const Number *gradient, const Number *second, const Number *x, const Number *other, const float *scale,
                     const float *shift, Number *out, double *sums, long pixels, long channels, long threads) {
    const auto constant = [=](long c) { return Constants{load(x + c), load(scale + c), load(shift + c)}; };
    add_up(pixels, channels, sums, threads, constant, [=](long first, const auto &of, auto &plain, auto &with_x) {
        constexpr long G = std::extent_v<std::remove_reference_t<decltype(plain)>>;
        Lanes value[G], g[G], z[G];
        for (long i = 0; i < G; ++i) {
            const long at = first + i * LANES, soon = at + BLOCK * channels;
            fetch(gradient + soon), fetch(x + soon);
            if (SECOND) fetch(second + soon);
            if (ADD) fetch(other + soon);
            value[i] = load(x + at), g[i] = load(gradient + at);
            if (SECOND) g[i] += load(second + at);
            z[i] = value[i] * of[i].scale + of[i].shift;
        }
        before_activation<A, ADD>(g, z, other + first);
        for (long i = 0; i < G; ++i) {
            if (out) store(out + first + i * LANES, g[i]);
            plain[i] += g[i];
            with_x[i] += g[i] * (value[i] - of[i].pivot);
        }
    });
}

}  // namespace

extern "C" {

// Mean and variance, float [channels] each, of x [pixels][channels].
void moments(const Number *x, float *mean, float *variance, long pixels, long channels, long threads) {
    const auto sums = buffer<double>(2 * channels);
    const auto constant = [=](long c) { return Constants{load(x + c)}; };
    add_up(pixels, channels, sums.get(), threads, constant, [=](long first, const auto &of, auto &plain, auto &square) {
        for (size_t i = 0; i < std::size(plain); ++i) {
            const long at = first + i * LANES;
            fetch(x + at + BLOCK * channels);
            const Lanes value = load(x + at) - of[i].pivot;
            plain[i] += value;
            square[i] += value * value;
        }
    });
    for (long c = 0; c < channels; ++c) {
        const double shifted = sums[c] / pixels, square = sums[channels + c] / pixels;
        const float pivot = number(x[c]);
        mean[c] = pivot + shifted;
        variance[c] = std::max(0.0, square - shifted * shifted);
    }
}

// out = activation(x * scale + shift + added), where `added` may be missing.
void forward(const Number *x, const Number *added, const float *scale, const float *shift, Number *out, long activation, long pixels,
             long channels, long threads) {
    with_activation(activation, [&](auto a) {
        (added ? normalize<a, true> : normalize<a, false>)(x, added, scale, shift, out, pixels, channels, threads);
    });
}

// The way back in two steps. `other` is missing without an addition, else the output of a ReLU, or what was added; `second` is
// added to the gradient, and may be missing. First the gradient of what the activation was taken of, into `out` unless that is
// missing, and with the mean and the inverse deviation its sums, float [channels]: of itself (`plain`) and of its products with
// the normalized x.
void backward_sums(const Number *gradient, const Number *second, const Number *x, const Number *other, const float *scale,
                   const float *shift, const float *mean, const float *inverse, Number *out, float *plain, float *with_normalized,
                   long activation, long pixels, long channels, long threads) {
    const auto sums = buffer<double>(2 * channels);
    with_activation(activation, [&](auto a) {
        const auto find = second ? (other ? gradient_of_sum<a, true, true> : gradient_of_sum<a, false, true>)
                                 : (other ? gradient_of_sum<a, true, false> : gradient_of_sum<a, false, false>);
        find(gradient, second, x, other, scale, shift, out, sums.get(), pixels, channels, threads);
    });
    for (long c = 0; c < channels; ++c) {
        const float pivot = number(x[c]);
        plain[c] = sums[c];
        with_normalized[c] = (sums[channels + c] - (mean[c] - pivot) * sums[c]) * inverse[c];
    }
}

// Then the gradient of x: of_x = gradient * scale + x * b + c, a number each a channel. of_x may be `gradient` itself. With a
// `shift`, the gradient is that of a ReLU of x * scale + shift.
void backward(const Number *gradient, const Number *x, const float *scale, const float *shift, const float *b, const float *c,
              Number *of_x, long pixels, long channels, long threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long pixel = 0; pixel < pixels; ++pixel)
        for (long channel = 0; channel < channels; channel += LANES) {
            const long at = pixel * channels + channel;
            const Lanes value = load(x + at), of_value = load(scale + channel);
            Lanes g = load(gradient + at);
            if (shift) g = value * of_value + load(shift + channel) > 0.0f ? g : Lanes{};
            store(of_x + at, g * of_value + value * load(b + channel) + load(c + channel));
        }
}
}
