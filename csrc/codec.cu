// SPDX-License-Identifier: Apache-2.0
// Rows of floating-point numbers to and from one byte each with a scale per row, in device memory.
//
// One block per row. `rows` may be null, which names the first rows in order.

#include "number_formats.h"

namespace epd {

// 16 bytes of a row, and the codes that belong to them.
template <typename Stored>
struct alignas(16) Pack {
  static constexpr int size = 16 / sizeof(Stored);
  Stored element[size];
};

template <int Size>
struct alignas(Size) CodePack {
  unsigned char element[Size];
};

// How many leading elements of a row can be taken in packs.
template <typename Stored>
EPD_INLINE long long packed_part(const void* row, const void* codes, long long width) {
  constexpr int size = Pack<Stored>::size;
  const bool aligned = reinterpret_cast<unsigned long long>(row) % 16 == 0 &&
                       reinterpret_cast<unsigned long long>(codes) % size == 0;
  return aligned ? width / size * size : 0;
}

EPD_INLINE unsigned larger(unsigned a, unsigned b) { return a > b ? a : b; }

// The largest of what the threads of a block hold, in all of them.
EPD_INLINE unsigned largest_of_block(unsigned value) {
  __shared__ unsigned largest;
  if (threadIdx.x == 0) largest = 0;
  __syncthreads();
  value = __reduce_max_sync(0xffffffffu, value);
  if (threadIdx.x % 32 == 0) atomicMax(&largest, value);
  __syncthreads();
  return largest;
}

template <typename Number>
EPD_INLINE unsigned largest_of_row(const typename Number::Stored* row, long long width, long long packed) {
  using Stored = typename Number::Stored;
  constexpr int size = Pack<Stored>::size;
  unsigned largest = 0;
  for (long long i = static_cast<long long>(threadIdx.x) * size; i < packed; i += blockDim.x * size) {
    const auto pack = *reinterpret_cast<const Pack<Stored>*>(row + i);
    for (int k = 0; k < size; ++k) largest = larger(largest, Number::load(pack.element[k]) & ~sign_bit);
  }
  for (long long i = packed + threadIdx.x; i < width; i += blockDim.x) {
    largest = larger(largest, Number::load(row[i]) & ~sign_bit);
  }
  return largest_of_block(largest);
}

template <typename Number, typename Codec>
EPD_INLINE void quantize(
    const char* source, long long stride, long long width, const long long* rows, unsigned char* codes, float* scales) {
  using Stored = typename Number::Stored;
  constexpr int size = Pack<Stored>::size;
  const long long i = blockIdx.x;
  const auto* row = reinterpret_cast<const Stored*>(source + (rows ? rows[i] : i) * stride);
  codes += i * width;
  const long long packed = packed_part<Stored>(row, codes, width);
  const float scale = scale_of<Codec>(largest_of_row<Number>(row, width, packed));
  const bool zero = !has_codes(scale);
  if (threadIdx.x == 0) scales[i] = scale;
  for (long long at = static_cast<long long>(threadIdx.x) * size; at < packed; at += blockDim.x * size) {
    const auto pack = *reinterpret_cast<const Pack<Stored>*>(row + at);
    CodePack<size> out;
    for (int k = 0; k < size; ++k) out.element[k] = zero ? 0 : encode<Codec>(Number::load(pack.element[k]), scale);
    *reinterpret_cast<CodePack<size>*>(codes + at) = out;
  }
  for (long long at = packed + threadIdx.x; at < width; at += blockDim.x) {
    codes[at] = zero ? 0 : encode<Codec>(Number::load(row[at]), scale);
  }
}

template <typename Number, typename Codec>
EPD_INLINE typename Number::Stored decode(unsigned char code, float scale) {
  return Number::store(is_finite(scale) ? Bits::of(Codec::decode(code) * scale) : nan_bits);
}

template <typename Number, typename Codec>
EPD_INLINE void dequantize(
    char* out, long long stride, long long width, const long long* rows, const unsigned char* codes,
    const float* scales) {
  using Stored = typename Number::Stored;
  constexpr int size = Pack<Stored>::size;
  const long long i = blockIdx.x;
  auto* row = reinterpret_cast<Stored*>(out + (rows ? rows[i] : i) * stride);
  codes += i * width;
  const float scale = scales[i];
  const long long packed = packed_part<Stored>(row, codes, width);
  for (long long at = static_cast<long long>(threadIdx.x) * size; at < packed; at += blockDim.x * size) {
    const auto given = *reinterpret_cast<const CodePack<size>*>(codes + at);
    Pack<Stored> pack;
    for (int k = 0; k < size; ++k) pack.element[k] = decode<Number, Codec>(given.element[k], scale);
    *reinterpret_cast<Pack<Stored>*>(row + at) = pack;
  }
  for (long long at = packed + threadIdx.x; at < width; at += blockDim.x) {
    row[at] = decode<Number, Codec>(codes[at], scale);
  }
}

}  // namespace epd

#define EPD_KERNELS(format, Number, code, Codec)                                                                 \
  extern "C" __global__ void quantize_##format##_##code(                                                         \
      const char* source, long long stride, long long width, const long long* rows, unsigned char* codes,        \
      float* scales) {                                                                                           \
    epd::quantize<epd::Number, epd::Codec>(source, stride, width, rows, codes, scales);                          \
  }                                                                                                              \
  extern "C" __global__ void dequantize_##format##_##code(                                                       \
      char* out, long long stride, long long width, const long long* rows, const unsigned char* codes,           \
      const float* scales) {                                                                                     \
    epd::dequantize<epd::Number, epd::Codec>(out, stride, width, rows, codes, scales);                           \
  }

EPD_KERNELS(float32, Float32, int8, Int8)
EPD_KERNELS(float32, Float32, fp8, Fp8)
EPD_KERNELS(float16, Float16, int8, Int8)
EPD_KERNELS(float16, Float16, fp8, Fp8)
EPD_KERNELS(bfloat16, BFloat16, int8, Int8)
EPD_KERNELS(bfloat16, BFloat16, fp8, Fp8)
