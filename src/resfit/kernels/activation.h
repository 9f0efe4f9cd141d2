// Activations and their derivatives, for G vectors of fp32 numbers at a time. Each step is computed for all G
// vectors before the next step, which depends on it, to hide latency.
#pragma once

#include <type_traits>

#include "numbers.h"

// work(channel, a constant G) for all channels, G times LANES of them at a time: `MOST`, and one at the end.
template <long MOST, typename Work> inline void in_groups(long channels, Work work) {
    long c = 0;
    for (; c + MOST * LANES <= channels; c += MOST * LANES) work(c, std::integral_constant<long, MOST>());
    for (; c < channels; c += LANES) work(c, std::integral_constant<long, 1>());
}

enum Activation : long { NONE, RELU, GELU, SILU };

// e to the power of x, for x of at most 80: 2 to a whole number times 2 to a fraction, the latter by a polynomial (error 2e-7).
inline Lanes exponential(Lanes x) {
    const Lanes power = larger(x * 1.44269504f, Lanes{} - 126.0f), nearest = whole(power), f = power - nearest;
    const Lanes fraction = 1.0f + f * (0.693147180f + f * (0.240226507f + f * (0.0555041087f + f * (0.00961812911f + f * 0.00133335581f))));
    return times_power(fraction, nearest);
}

// Both are 1/2 + z times a function of z^2, here a minimax polynomial up to z = LIMIT. Its argument is brought from there to
// -1 .. 1, so that its coefficients are small and little is lost in fp32.
constexpr float LIMIT = 5.0f;
// The standard normal distribution, within 3e-7.
constexpr float NORMAL[] = {0.141363788f,  -0.0702962806f, 0.0515205223f,   -0.0404426074f, 0.0314421724f,
                            -0.0232686526f, 0.0164021742f, -0.0111643396f,  0.00641051106f, -0.00268557466f,
                            0.00172279864f, -0.00161326532f, 0.000608727628f};
// It plus z times its density, within 1.3e-5.
constexpr float GELU_SLOPE[] = {0.142130581f,  -0.0751227792f, 0.0668261777f, -0.0715419567f, 0.0770893839f, -0.085355299f,
                                0.0951199755f, -0.0684484164f, 0.0212280775f, -0.0277211154f, 0.0465146888f, -0.0207204014f};

// That function of `near`, which has been brought within the limit.
template <int N, long G> inline void half_and_odd(const Lanes (&near)[G], const float (&coefficients)[N], Lanes (&out)[G]) {
    Lanes v[G];
    for (long i = 0; i < G; ++i) v[i] = near[i] * near[i] * (2 / (LIMIT * LIMIT)) - 1.0f, out[i] = Lanes{} + coefficients[N - 1];
#pragma GCC unroll 16
    for (int k = N - 2; k >= 0; --k)
        for (long i = 0; i < G; ++i) out[i] = out[i] * v[i] + coefficients[k];
    for (long i = 0; i < G; ++i) out[i] = 0.5f + near[i] * out[i];
}

inline Lanes clamped(Lanes z) {  // what is not a number stays that
    return larger(Lanes{} - LIMIT, smaller(Lanes{} + LIMIT, z));
}

inline Lanes sigmoid(Lanes z) { return 1.0f / (1.0f + exponential(-z)); }

template <Activation A, long G> inline void activate(Lanes (&z)[G]) {
    Lanes near[G], normal[G];
    if constexpr (A == GELU) {
        for (long i = 0; i < G; ++i) near[i] = clamped(z[i]);
        half_and_odd(near, NORMAL, normal);
    }
    for (long i = 0; i < G; ++i) {
        if constexpr (A == RELU) z[i] = z[i] < 0.0f ? Lanes{} : z[i];
        if constexpr (A == SILU) z[i] *= sigmoid(z[i]);
        if constexpr (A == GELU) z[i] = (z[i] < -LIMIT ? near[i] : z[i]) * normal[i];
    }
}

// From the gradient of the activation to that of z (+ added), which it was taken of. `other`: where there was an addition, a
// ReLU's output, else what was added.
template <Activation A, bool ADD, long G> inline void before_activation(Lanes (&gradient)[G], Lanes (&z)[G], const Number *other) {
    if constexpr (ADD && (A == GELU || A == SILU))
        for (long i = 0; i < G; ++i) z[i] += load(other + i * LANES);
    Lanes slope[G];
    if constexpr (A == GELU) {
        for (long i = 0; i < G; ++i) z[i] = clamped(z[i]);
        half_and_odd(z, GELU_SLOPE, slope);
    }
    for (long i = 0; i < G; ++i) {
        if constexpr (A == RELU) gradient[i] = (ADD ? load(other + i * LANES) : z[i]) > 0.0f ? gradient[i] : Lanes{};
        if constexpr (A == SILU) {
            const Lanes s = sigmoid(z[i]);
            gradient[i] *= s * (1.0f + z[i] * (1.0f - s));
        }
        if constexpr (A == GELU) gradient[i] *= slope[i];
    }
}

// run(activation), as a constant that templates take.
template <typename Run> void with_activation(long activation, Run run) {
    switch (activation) {
    case RELU: return run(std::integral_constant<Activation, RELU>());
    case GELU: return run(std::integral_constant<Activation, GELU>());
    case SILU: return run(std::integral_constant<Activation, SILU>());
    default: return run(std::integral_constant<Activation, NONE>());
    }
}
