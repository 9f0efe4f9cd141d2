// Shared by the kernels: the numbers of feature maps (bf16, or fp32 with -DFP32), vectors of fp32 numbers to compute with,
// and aligned memory.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

#ifdef __AVX512F__
constexpr long LANES = 16;
#else
constexpr long LANES = 8;
#endif

typedef float Lanes __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef int32_t Integers __attribute__((vector_size(4 * LANES)));
typedef uint8_t Bytes __attribute__((vector_size(LANES)));

struct Free {
    void operator()(void *memory) const { std::free(memory); }
};
template <typename T> using Buffer = std::unique_ptr<T[], Free>;

template <typename T> Buffer<T> buffer(long count) {
    void *memory = std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64);
    if (!memory) {  // nothing can be thrown from here through OpenMP and Python
        std::fputs("error: out of memory in a kernel (train.batch_size): give a smaller one\n", stderr);
        std::_Exit(1);
    }
    return Buffer<T>(static_cast<T *>(memory));
}

inline Lanes load(const float *from) {
    Lanes lanes;
    std::memcpy(&lanes, from, sizeof lanes);
    return lanes;
}

inline void store(float *to, Lanes lanes) { std::memcpy(to, &lanes, sizeof lanes); }

#ifdef __AVX512F__
// The smaller or larger of two numbers; the second if one of them is not a number.
inline Lanes smaller(Lanes a, Lanes b) { return (Lanes)_mm512_min_ps((__m512)a, (__m512)b); }
inline Lanes larger(Lanes a, Lanes b) { return (Lanes)_mm512_max_ps((__m512)a, (__m512)b); }

inline Lanes whole(Lanes x) {  // the nearest whole number
    return (Lanes)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

// x times 2 to the power of a whole number of at least -126. Above 127, the result is very large or infinite.
inline Lanes times_power(Lanes x, Lanes power) { return (Lanes)_mm512_scalef_ps((__m512)x, (__m512)power); }
#else
inline Lanes smaller(Lanes a, Lanes b) { return (Lanes)_mm256_min_ps((__m256)a, (__m256)b); }
inline Lanes larger(Lanes a, Lanes b) { return (Lanes)_mm256_max_ps((__m256)a, (__m256)b); }

inline Lanes whole(Lanes x) { return (Lanes)_mm256_round_ps((__m256)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

inline Lanes times_power(Lanes x, Lanes power) {
    return x * (Lanes)((__builtin_convertvector(smaller(power, Lanes{} + 127.0f), Integers) + 127) << 23);
}
#endif

#ifdef FP32
typedef float Number;
typedef Words Bits;  // of a vector of numbers

inline float number(float value) { return value; }
inline Bits exactly(Lanes value) { return (Bits)value; }
#else
typedef uint16_t bf16, Number;
typedef uint16_t Bits __attribute__((vector_size(2 * LANES)));

inline float number(bf16 half) {
    const uint32_t word = uint32_t(half) << 16;
    float value;
    std::memcpy(&value, &word, sizeof value);
    return value;
}

inline Words load_words(const bf16 *from) {  // in one instruction, which the compiler doesn't make of a conversion
    return (Words)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from));
}

inline Lanes load(const bf16 *from) { return (Lanes)(load_words(from) << 16); }

// The bits of the nearest bf16 (ties to even), in the upper half of each word.
inline Words rounded(Lanes value) {
    const Words words = (Words)value;
    return words + 0x7fff + ((words >> 16) & 1);
}

inline void store(bf16 *to, Lanes value) {
    const __m256bh halves = _mm512_cvtneps_pbh((__m512)value);
    std::memcpy(to, &halves, sizeof halves);
}

// The bits of numbers that need no rounding.
inline Bits exactly(Lanes value) { return __builtin_convertvector((Words)value >> 16, Bits); }
#endif

// Asks for memory that will be read soon. It need not be there.
inline void fetch(const Number *soon) { _mm_prefetch(soon, _MM_HINT_T0); }
