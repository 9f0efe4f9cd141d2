// Channel gates (squeeze-and-excitation) fused with the following addition and activation, for channels-last Number feature
// maps. A map is read once for its means and once for gating, and as often in backward. Arithmetic is fp32. Channel counts
// are multiples of LANES. Results do not depend on `threads`.

#include <algorithm>

#include "activation.h"

namespace {

constexpr long BLOCK = 4;  // pixels summed at a time: few, so that memory is read nearly in order

// work(where channels of a pixel are in a map, where they are in what has one number an image and channel, a constant: how
// many times LANES of them).
template <typename Work> void each(long images, long pixels, long channels, long threads, Work work) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long image = 0; image < images; ++image)
        for (long pixel = image * pixels; pixel < (image + 1) * pixels; ++pixel)
            in_groups<4>(channels, [&](long c, auto g) { work(pixel * channels + c, image * channels + c, g); });
}

// Sums over each image's pixels, float [images][channels]. add(image, first place, one past the last, channel, sum) adds a
// block's, of LANES channels, to `sum`; places are those of the channel in a map, `channels` apart.
template <typename Add> void add_up(float *sums, long images, long pixels, long channels, long threads, Add add) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long image = 0; image < images; ++image) {
        float *of_image = sums + image * channels;
        std::fill_n(of_image, channels, 0.0f);
        for (long first = 0; first < pixels; first += BLOCK) {
            const long begin = (image * pixels + first) * channels;
            const long end = (image * pixels + std::min(pixels, first + BLOCK)) * channels;
            for (long c = 0; c < channels; c += LANES) {
                Lanes sum = load(of_image + c);
                add(image, begin + c, end, c, sum);
                store(of_image + c, sum);
            }
        }
    }
}

template <Activation A, bool ADD>
void gated(const Number *x, const float *gates, const Number *added, Number *out, long images, long pixels, long channels, long threads) {
    each(images, pixels, channels, threads, [&](long first, long of_image, auto g) {
        Lanes z[g];
        for (long i = 0; i < g; ++i) {
            const long at = first + i * LANES;
            z[i] = load(x + at) * load(gates + of_image + i * LANES);
            if (ADD) z[i] += load(added + at);
        }
        activate<A>(z);
        for (long i = 0; i < g; ++i) store(out + first + i * LANES, z[i]);
    });
}

// `second`, which may be missing, is added to the gradient first.
template <Activation A, bool ADD, bool SECOND>
void gradients(const Number *gradient, const Number *second, const Number *x, const float *gates, const Number *other, Number *of_sum,
               Number *of_x, float *of_gates, long images, long pixels, long channels, long threads) {
    add_up(of_gates, images, pixels, channels, threads, [&](long image, long first, long end, long c, Lanes &sum) {
        const Lanes gate = load(gates + image * channels + c);
        for (long at = first; at < end; at += channels) {
            const long soon = at + BLOCK * channels;
            fetch(gradient + soon), fetch(x + soon);
            if (SECOND) fetch(second + soon);
            if (ADD) fetch(other + soon);
            const Lanes value = load(x + at);
            Lanes g[] = {load(gradient + at)}, z[] = {value * gate};
            if (SECOND) g[0] += load(second + at);
            before_activation<A, ADD>(g, z, other + at);
            if (of_sum) store(of_sum + at, g[0]);
            store(of_x + at, g[0] * gate);
            sum += g[0] * value;
        }
    });
}

}  // namespace

extern "C" {

// The mean of each image's pixels, float [images][channels], of x [images][pixels][channels].
void means(const Number *x, float *mean, long images, long pixels, long channels, long threads) {
    add_up(mean, images, pixels, channels, threads, [&](long, long first, long end, long, Lanes &sum) {
        for (long at = first; at < end; at += channels) fetch(x + at + BLOCK * channels), sum += load(x + at);
    });
    for (long at = 0; at < images * channels; ++at) mean[at] /= pixels;
}

// The gradient of x, of those of its means and of x where it was used otherwise.
void means_backward(const Number *gradient, const float *of_means, Number *of_x, long images, long pixels, long channels, long threads) {
    each(images, pixels, channels, threads, [&](long first, long of_image, auto g) {
        for (long at = first, i = of_image; at < first + g * LANES; at += LANES, i += LANES)
            store(of_x + at, load(gradient + at) + load(of_means + i) * (1.0f / pixels));
    });
}

// out = activation(x * gates + added), where `added` may be missing.
void forward(const Number *x, const float *gates, const Number *added, Number *out, long activation, long images, long pixels,
             long channels, long threads) {
    with_activation(activation, [&](auto a) {
        (added ? gated<a, true> : gated<a, false>)(x, gates, added, out, images, pixels, channels, threads);
    });
}

// The gradients of what the activation was taken of, into `of_sum` unless that is missing, of x, and of the gates. `other` is
// missing without an addition, else the output of a ReLU, or what was added; `second` is added to the gradient, and may be
// missing.
void backward(const Number *gradient, const Number *second, const Number *x, const float *gates, const Number *other, Number *of_sum,
              Number *of_x, float *of_gates, long activation, long images, long pixels, long channels, long threads) {
    with_activation(activation, [&](auto a) {
        const auto find = second ? (other ? gradients<a, true, true> : gradients<a, false, true>)
                                 : (other ? gradients<a, true, false> : gradients<a, false, false>);
        find(gradient, second, x, gates, other, of_sum, of_x, of_gates, images, pixels, channels, threads);
    });
}
}
