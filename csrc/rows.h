// SPDX-License-Identifier: Apache-2.0
// Row numbers as the kernels take them.
#pragma once

#include <cstdint>
#include <sstream>
#include <stdexcept>

#include "check.h"

namespace epd {

// Which rows of a tensor, in which order; without `indices` the first `count`.
struct Rows {
  const std::int64_t* indices;
  std::int64_t count;

  std::int64_t operator[](std::int64_t i) const { return indices ? indices[i] : i; }

  // Before anything is written, so that a bad row leaves the target as it was. What it throws is for the user to read.
  void check(std::int64_t limit) const {
    if (!indices) EPD_CHECK(count <= limit, count, " rows of ", limit);
    for (std::int64_t i = 0; indices && i < count; ++i) {
      if (indices[i] < 0 || indices[i] >= limit) refuse(i, limit);
    }
  }

  [[noreturn]] void refuse(std::int64_t i, std::int64_t limit) const {
    std::ostringstream text;
    text << "rows[" << i << "] is " << indices[i] << "; expected 0 to " << limit - 1;
    throw std::out_of_range(text.str());
  }
};

}  // namespace epd
