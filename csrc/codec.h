// SPDX-License-Identifier: Apache-2.0
// Rows of floating-point numbers to and from one byte each with a scale per row, in host memory.
#pragma once

#include <cstdint>

#include "rows.h"

namespace epd {

enum class Format : int { float32, float16, bfloat16 };
enum class Code : int { int8, fp8 };

// `rows` rows of `width` elements; row r is at address + r * stride bytes.
struct Matrix {
  std::uint8_t* address;
  std::int64_t stride;
  std::int64_t rows;
  std::int64_t width;
  Format format;
};

// Packed codes, `width` bytes for each of `rows.count` rows, and as many scales.
struct Coded {
  std::uint8_t* codes;
  float* scales;
  Code code;
};

void quantize_rows(const Matrix& source, Rows rows, const Coded& out, std::int64_t threads);
void dequantize_rows(const Coded& source, const Matrix& out, Rows rows, std::int64_t threads);

}  // namespace epd
