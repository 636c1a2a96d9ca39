// SPDX-License-Identifier: Apache-2.0
#include "codec.h"

#include <algorithm>

#include "number_formats.h"
#include "parallel.h"

// The loops over a row are compiled for several vector lengths, and the loader takes the longest that the machine has.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && __GNUC__ >= 12 && !defined(__clang__)
#define EPD_VECTORISED __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EPD_VECTORISED
#endif

namespace epd {
namespace {

// Unsigned integers order magnitudes as the floats do, and NaN above infinity above all numbers.
template <typename Number>
EPD_VECTORISED unsigned largest_magnitude(const typename Number::Stored* row, std::int64_t width) {
  unsigned largest = 0;
  for (std::int64_t i = 0; i < width; ++i) largest = std::max(largest, Number::load(row[i]) & ~sign_bit);
  return largest;
}

template <typename Number, typename Codec>
EPD_VECTORISED float quantize_row(const typename Number::Stored* row, std::int64_t width, std::uint8_t* codes) {
  const float scale = scale_of<Codec>(largest_magnitude<Number>(row, width));
  if (!has_codes(scale)) {
    std::fill_n(codes, width, std::uint8_t{0});
    return scale;
  }
  for (std::int64_t i = 0; i < width; ++i) codes[i] = encode<Codec>(Number::load(row[i]), scale);
  return scale;
}

template <typename Number, typename Codec>
EPD_VECTORISED void dequantize_row(const std::uint8_t* codes, float scale, std::int64_t width, typename Number::Stored* row) {
  if (!is_finite(scale)) {
    std::fill_n(row, width, Number::store(nan_bits));
    return;
  }
  for (std::int64_t i = 0; i < width; ++i) row[i] = Number::store(Bits::of(Codec::decode(codes[i]) * scale));
}

template <typename Number, typename Codec>
void quantize(const Matrix& source, Rows rows, const Coded& out, std::int64_t threads) {
  using Stored = typename Number::Stored;
  const std::int64_t bytes = rows.count * source.width * static_cast<std::int64_t>(sizeof(Stored));
  parallel_for(rows.count, bytes, threads, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const auto* row = reinterpret_cast<const Stored*>(source.address + rows[i] * source.stride);
      out.scales[i] = quantize_row<Number, Codec>(row, source.width, out.codes + i * source.width);
    }
  });
}

template <typename Number, typename Codec>
void dequantize(const Coded& source, const Matrix& out, Rows rows, std::int64_t threads) {
  using Stored = typename Number::Stored;
  const std::int64_t bytes = rows.count * out.width * static_cast<std::int64_t>(sizeof(Stored));
  parallel_for(rows.count, bytes, threads, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      auto* row = reinterpret_cast<Stored*>(out.address + rows[i] * out.stride);
      dequantize_row<Number, Codec>(source.codes + i * out.width, source.scales[i], out.width, row);
    }
  });
}

// Calls action(Number, Codec) with an object of each.
template <typename Number, typename Action>
void with_codec(Code code, const Action& action) {
  switch (code) {
    case Code::int8: return action(Number{}, Int8{});
    case Code::fp8: return action(Number{}, Fp8{});
  }
  EPD_CHECK(false, "no codec ", static_cast<int>(code));
}

template <typename Action>
void with_types(Format format, Code code, const Action& action) {
  switch (format) {
    case Format::float32: return with_codec<Float32>(code, action);
    case Format::float16: return with_codec<Float16>(code, action);
    case Format::bfloat16: return with_codec<BFloat16>(code, action);
  }
  EPD_CHECK(false, "no format ", static_cast<int>(format));
}

}  // namespace

void quantize_rows(const Matrix& source, Rows rows, const Coded& out, std::int64_t threads) {
  rows.check(source.rows);
  with_types(source.format, out.code, [&](auto number, auto codec) {
    quantize<decltype(number), decltype(codec)>(source, rows, out, threads);
  });
}

void dequantize_rows(const Coded& source, const Matrix& out, Rows rows, std::int64_t threads) {
  rows.check(out.rows);
  with_types(out.format, source.code, [&](auto number, auto codec) {
    dequantize<decltype(number), decltype(codec)>(source, out, rows, threads);
  });
}

}  // namespace epd
