// SPDX-License-Identifier: Apache-2.0
// Row numbers as the kernels take them.
#pragma once

#include <cstdint>

#include "check.h"

namespace epd {

// Which rows of a tensor, in which order; without `indices` the first `count`.
struct Rows {
  const std::int64_t* indices;
  std::int64_t count;

  std::int64_t operator[](std::int64_t i) const { return indices ? indices[i] : i; }

  // Before anything is written, so that a bad row leaves the target as it was.
  void check(std::int64_t limit) const {
    if (!indices) EPD_CHECK(count <= limit, count, " rows of ", limit);
    for (std::int64_t i = 0; indices && i < count; ++i) {
      EPD_CHECK(indices[i] >= 0 && indices[i] < limit, "row ", indices[i], " of ", limit);
    }
  }
};

}  // namespace epd
