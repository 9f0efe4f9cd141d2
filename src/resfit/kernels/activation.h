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

inline Lanes magnitude(Lanes x) { return (Lanes)((Words)x & 0x7fffffff); }

// The standard normal distribution at z, and its density. Abramowitz and Stegun 7.1.26, error 1.5e-7.
inline void normal(Lanes z, Lanes &below, Lanes &density) {
    const Lanes e = exponential(z * z * -0.5f), t = 1.0f / (1.0f + magnitude(z) * 0.231641888f);
    const Lanes tail = 0.5f * e * t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
    below = z > 0.0f ? 1.0f - tail : tail;
    density = e * 0.398942280f;
}

inline Lanes sigmoid(Lanes z) { return 1.0f / (1.0f + exponential(-z)); }

template <Activation A> inline Lanes activate(Lanes z) {
    if constexpr (A == RELU) return z < 0.0f ? Lanes{} : z;
    if constexpr (A == SILU) return z * sigmoid(z);
    if constexpr (A == GELU) {
        Lanes below, density;
        normal(z, below, density);
        return z * below;
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
    if constexpr (A == GELU) {
        Lanes below, density;
        normal(z, below, density);
        return below + z * density;
    }
    return Lanes{} + 1.0f;
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
