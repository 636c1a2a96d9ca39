// SPDX-License-Identifier: Apache-2.0
// Rows of many planes to and from one run of bytes, in host memory.
#pragma once

#include <cstdint>

#include "rows.h"

namespace epd {

// `count` byte matrices with the same number of rows; row r of plane p is width[p] bytes at address[p] + r * stride[p].
struct Planes {
  const std::int64_t* address;
  const std::int64_t* stride;
  const std::int64_t* width;
  std::int64_t count;
  std::int64_t rows;

  std::int64_t row_bytes() const;
};

// Writes, for each of `rows`, the pieces of all planes one after the other into `out`.
void gather_rows(const Planes& planes, Rows rows, std::uint8_t* out, std::int64_t out_bytes, std::int64_t threads);

// The inverse. Where a row is named twice, either of its sources may end up there, or a part of each.
void scatter_rows(
    const std::uint8_t* source, std::int64_t source_bytes, const Planes& planes, Rows rows, std::int64_t threads);

}  // namespace epd
