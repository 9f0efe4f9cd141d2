// Activations and their slopes, sixteen fp32 numbers at a time.
#pragma once

#include <type_traits>

#include "bf16.h"

enum Activation : long { NONE, RELU, GELU, SILU };

// e to the power of x, for x of at most 80: 2 to a whole number times 2 to a fraction, the latter by a polynomial (error 2e-7).
inline Lanes exponential(Lanes x) {
    const __m512 power = _mm512_max_ps((__m512)(x * 1.44269504f), _mm512_set1_ps(-126));
    const __m512 whole = _mm512_roundscale_ps(power, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const Lanes f = (Lanes)(power - whole);
    const Lanes fraction = 1.0f + f * (0.693147180f + f * (0.240226507f + f * (0.0555041087f + f * (0.00961812911f + f * 0.00133335581f))));
    return (Lanes)_mm512_scalef_ps((__m512)fraction, whole);
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

template <int N> inline Lanes half_and_odd(Lanes z, const float (&coefficients)[N]) {
    const Lanes v = z * z * (2 / (LIMIT * LIMIT)) - 1.0f;
    Lanes sum = Lanes{} + coefficients[N - 1];
    for (int i = N - 2; i >= 0; --i) sum = sum * v + coefficients[i];
    return 0.5f + z * sum;
}

inline Lanes clamped(Lanes z) {  // what is not a number stays that
    const __m512 limit = _mm512_set1_ps(LIMIT);
    return (Lanes)_mm512_max_ps(-limit, _mm512_min_ps(limit, (__m512)z));
}

inline Lanes sigmoid(Lanes z) { return 1.0f / (1.0f + exponential(-z)); }

template <Activation A> inline Lanes activate(Lanes z) {
    if constexpr (A == RELU) return z < 0.0f ? Lanes{} : z;
    if constexpr (A == SILU) return z * sigmoid(z);
    if constexpr (A == GELU) {
        const Lanes near = clamped(z);
        return (z < -LIMIT ? near : z) * half_and_odd(near, NORMAL);
    }
    return z;
}

// The activation's slope at z; for a ReLU z may be its output.
template <Activation A> inline Lanes slope(Lanes z) {
    if constexpr (A == RELU) return z > 0.0f ? Lanes{} + 1.0f : Lanes{};
    if constexpr (A == SILU) {
        const Lanes s = sigmoid(z);
        return s * (1.0f + z * (1.0f - s));
    }
    if constexpr (A == GELU) return half_and_odd(clamped(z), GELU_SLOPE);
    return Lanes{} + 1.0f;
}

// The gradient of z (+ added), from that of its activation. `other`: of a ReLU its output, else what was added.
template <Activation A, bool ADD> inline Lanes before_activation(Lanes gradient, Lanes z, const bf16 *other) {
    if constexpr (A == NONE) return gradient;
    if constexpr (A == RELU) return load(other) > 0.0f ? gradient : Lanes{};
    if (ADD) z += load(other);
    return gradient * slope<A>(z);
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
