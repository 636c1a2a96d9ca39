// SPDX-License-Identifier: Apache-2.0
// Floating-point formats and codes as bits, the same on every device: plain integer arithmetic and no library.
#pragma once

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define EPD_INLINE static __device__ __forceinline__
#else
#define EPD_INLINE static inline __attribute__((always_inline))
#endif

namespace epd {

constexpr unsigned sign_bit = 0x80000000u;
constexpr unsigned infinity_bits = 0x7f800000u;
constexpr unsigned nan_bits = 0x7fc00000u;

// The bits of 2^exponent as a float.
EPD_INLINE constexpr unsigned power(int exponent) { return static_cast<unsigned>(exponent + 127) << 23; }

struct Bits {
  EPD_INLINE unsigned of(float value) { return __builtin_bit_cast(unsigned, value); }
  EPD_INLINE float value(unsigned bits) { return __builtin_bit_cast(float, bits); }
};

// A float of `mantissa` bits and a bias of `bias`, widened; it is `magnitude` shifted to where a float has its exponent.
// Numbers without the implied leading one are exact differences of two that have it.
EPD_INLINE unsigned widen(unsigned magnitude, int bias) {
  const unsigned rebased = magnitude + power(-bias);
  const float smallest = Bits::value(power(1 - bias));
  const unsigned subnormal = Bits::of(Bits::value(rebased + (1u << 23)) - smallest);
  return magnitude < (1u << 23) ? subnormal : rebased;
}

// The reverse, to the nearest and ties to even, for a magnitude below the format's largest; carries out of the mantissa.
EPD_INLINE unsigned narrow(unsigned magnitude, int mantissa, int bias) {
  const int shift = 23 - mantissa;
  const unsigned odd = (magnitude >> shift) & 1u;
  const unsigned normal = (magnitude - power(-bias) + (1u << (shift - 1)) - 1u + odd) >> shift;
  // Adding what has its last bit where the format has its last subnormal one rounds there.
  const unsigned aligned = power(1 - bias + shift);
  const unsigned subnormal = Bits::of(Bits::value(magnitude) + Bits::value(aligned)) - aligned;
  return magnitude < power(1 - bias) ? subnormal : normal;
}

// Each format widens to the bits of a float and narrows from them.
struct Float32 {
  using Stored = unsigned;
  EPD_INLINE unsigned load(Stored stored) { return stored; }
  EPD_INLINE Stored store(unsigned bits) { return bits; }
};

struct BFloat16 {
  using Stored = unsigned short;
  EPD_INLINE unsigned load(Stored stored) { return static_cast<unsigned>(stored) << 16; }
  EPD_INLINE Stored store(unsigned bits) {
    const unsigned rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return static_cast<Stored>((bits & ~sign_bit) > infinity_bits ? nan_bits >> 16 : rounded);
  }
};

struct Float16 {
  using Stored = unsigned short;
  EPD_INLINE unsigned load(Stored stored) {
    const unsigned magnitude = (stored & 0x7fffu) << 13;
    const unsigned bits = magnitude < (0x1fu << 23) ? widen(magnitude, 15) : magnitude | infinity_bits;
    return bits | (stored & 0x8000u) << 16;
  }
  EPD_INLINE Stored store(unsigned bits) {
    const unsigned magnitude = bits & ~sign_bit;
    const unsigned special = magnitude > infinity_bits ? 0x7e00u : 0x7c00u;
    const unsigned stored = magnitude < power(16) ? narrow(magnitude, 10, 15) : special;
    return static_cast<Stored>(stored | (bits & sign_bit) >> 16);
  }
};

// Each codec has the largest value of a code, and takes values up to it.
struct Int8 {
  static constexpr float largest = 127.0f;
  EPD_INLINE unsigned char encode(float value) {
    // 1.5 * 2^23: the sum's last bits are the nearest integer, ties to even.
    return static_cast<unsigned char>(Bits::of(value + 12582912.0f));
  }
  EPD_INLINE float decode(unsigned char code) { return static_cast<float>(static_cast<signed char>(code)); }
};

// float8_e4m3fn: no infinities, and NaN where all bits but the sign are set.
struct Fp8 {
  static constexpr float largest = 448.0f;
  EPD_INLINE unsigned char encode(float value) {
    const unsigned bits = Bits::of(value);
    return static_cast<unsigned char>(narrow(bits & ~sign_bit, 3, 7) | (bits & sign_bit) >> 24);
  }
  EPD_INLINE float decode(unsigned char code) {
    const unsigned magnitude = code & 0x7fu;
    const unsigned bits = magnitude == 0x7fu ? nan_bits : widen(magnitude << 20, 7);
    return Bits::value(bits | (code & 0x80u) << 24);
  }
};

// What a row of a known largest magnitude is divided by; NaN where it holds NaN or infinity.
template <typename Codec>
EPD_INLINE float scale_of(unsigned largest_bits) {
  return largest_bits < infinity_bits ? Bits::value(largest_bits) / Codec::largest : Bits::value(nan_bits);
}

// Whether a row of this scale has codes that mean something: neither zero nor NaN.
EPD_INLINE bool has_codes(float scale) { return scale > 0.0f; }

EPD_INLINE bool is_finite(float value) { return (Bits::of(value) & ~sign_bit) < infinity_bits; }

template <typename Codec>
EPD_INLINE unsigned char encode(unsigned bits, float scale) {
  const float scaled = Bits::value(bits) / scale;
  const float above = scaled < -Codec::largest ? -Codec::largest : scaled;
  return Codec::encode(above > Codec::largest ? Codec::largest : above);
}

}  // namespace epd
